"""Which runs are known? One frozen value for each published one, and small ones for one machine.

Names are SIZE-DATA-TASK. Values are those of the scripts of MCG-NJU/VideoMAE and, for "giant", of
VideoMAE V2 (OpenGVLab/VideoMAEv2); where a script says nothing, its program's default. What
differs: bfloat16 takes the place of float16 with a scaled loss, layers are computed again in the
backward pass everywhere (which changes no figure), and the classes are the data's.
"""

import contextlib
import dataclasses
import io
import re
from typing import Any

from videomae_jax.config import VARIANTS, VideoMAEConfig
from videomae_jax.training.settings import Augment, Input, Masking, Optimizer, Recipe

# The original code has this in every norm, transformers in none.
NORM_EPS = 1e-6
EPS = {"layer_norm_eps": NORM_EPS, "fc_norm_eps": NORM_EPS, "decoder_norm_eps": NORM_EPS}
TRAINED = {
    name: dataclasses.replace(config, num_labels=0, **EPS) for name, config in VARIANTS.items()
}
# Its decoder has the encoder's ratio of widths, 48 / 11.
TRAINED["giant"] = dataclasses.replace(TRAINED["giant"], decoder_intermediate_size=2234)

FINETUNE_AUGMENT = Augment(
    randaugment="rand-m7-n4-mstd0.5-inc1",
    crop="resized",
    crop_area=(0.08, 1.0),
    crop_aspect=(0.75, 4 / 3),
    flip=0.5,
    erase=0.25,
    mixup=0.8,
    cutmix=1.0,
    mix=1.0,
    mix_switch=0.5,
    smoothing=0.1,
)
# Something-Something has classes that tell left from right.
NO_FLIP = dataclasses.replace(FINETUNE_AUGMENT, flip=0.0)


def pretraining(
    size: str,
    *,
    batch: int,
    epochs: float,
    rate: int = 4,
    masking: Masking = Masking(kind="tube", ratio=0.9),  # noqa: B008, it is frozen
    repeats: int = 1,
    **optimizer: Any,
) -> Recipe:
    """Masked pre-training as published: multi-scale crops, no flip."""
    chosen: dict[str, Any] = {
        "base_lr": 1.5e-4,
        "warmup_epochs": 40.0,
        "min_lr": 1e-5,
        "betas": (0.9, 0.95),
    }
    return Recipe(
        task="pretrain",
        # A norm at the encoder's end.
        model=dataclasses.replace(TRAINED[size], use_mean_pooling=False),
        input=Input(batch_size=batch, repeats=repeats, sampling="pretraining", rate=rate),
        optimizer=Optimizer(epochs=epochs, **(chosen | optimizer)),
        augment=Augment(crop="multi_scale"),
        masking=masking,
        dtype="bfloat16",
    )


def kinetics(
    size: str,
    *,
    batch: int,
    base_lr: float,
    epochs: float,
    repeats: int = 2,
    drop_path: float = 0.1,
    head_dropout: float = 0.0,
    **optimizer: Any,
) -> Recipe:
    """Fine-tuning on Kinetics and data like it: clips of 64 frames, every fourth is seen."""
    chosen: dict[str, Any] = {"warmup_epochs": 5.0, "layer_decay": 0.75, **optimizer}
    return Recipe(
        task="finetune",
        model=TRAINED[size],
        input=Input(batch_size=batch, repeats=repeats, sampling="kinetics_train", rate=4),
        optimizer=Optimizer(base_lr=base_lr, epochs=epochs, **chosen),
        augment=FINETUNE_AUGMENT,
        drop_path=drop_path,
        head_dropout=head_dropout,
        dtype="bfloat16",
    )


def something(size: str, **options: Any) -> Recipe:
    """Fine-tuning on Something-Something V2: the whole video is seen, and never mirrored."""
    recipe = kinetics(size, **options)
    spread = dataclasses.replace(recipe.input, sampling="ssv2_train")
    return dataclasses.replace(recipe, input=spread, augment=NO_FLIP)


DUAL = Masking(kind="dual", ratio=0.9)
GIANT = {"layer_decay": 0.9, "weight_decay": 0.1}

# VideoMAE on 2 cores: 0.9 million parameters on 16 frames of 48 x 48, as the boxed model has them.
# Small batches, because a small network needs steps before all: some thousand until attention has
# learnt where things are. Colours as they are and masks in any place tell it so earlier than
# normalised tubelets and tubes do.
TINY = VideoMAEConfig(
    image_size=(48, 48),
    patch_size=(8, 8),
    tubelet_size=4,
    hidden_size=128,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=512,
    decoder_hidden_size=96,
    decoder_num_attention_heads=3,
    decoder_num_hidden_layers=2,
    decoder_intermediate_size=384,
    norm_pix_loss=False,
    num_labels=0,
    **EPS,
)
TINY_PRETRAIN = Recipe(
    task="pretrain",
    model=dataclasses.replace(TINY, use_mean_pooling=False),
    input=Input(batch_size=16, sampling="pretraining", rate=2, canvas=56),
    optimizer=Optimizer(
        base_lr=0.032, epochs=10.0, warmup_epochs=0.5, betas=(0.9, 0.95), clip_norm=1.0
    ),
    augment=Augment(crop="resized", crop_area=(0.6, 1.0), crop_aspect=(0.9, 1.1)),
    masking=Masking(kind="random", ratio=0.75),
    dtype="bfloat16",
    remat=False,
)
TINY_FINETUNE = Recipe(
    task="finetune",
    model=TINY,
    input=Input(batch_size=16, sampling="uniform", canvas=56),
    optimizer=Optimizer(
        base_lr=0.016, epochs=10.0, warmup_epochs=0.25, betas=(0.9, 0.98), clip_norm=1.0
    ),
    augment=Augment(crop="resized", crop_area=(0.6, 1.0), crop_aspect=(0.9, 1.1)),
    dtype="bfloat16",
    remat=False,
)

RECIPES: dict[str, Recipe] = {
    "tiny-pretrain": TINY_PRETRAIN,
    "tiny-finetune": TINY_FINETUNE,
    "small-k400-pretrain": pretraining("small", batch=1024, epochs=1600.0),
    "small-k400-finetune": kinetics("small", batch=384, base_lr=5e-4, epochs=150.0),
    "small-ssv2-pretrain": pretraining("small", batch=1024, epochs=2400.0, rate=2),
    "small-ssv2-finetune": something(
        "small", batch=384, base_lr=1e-3, epochs=40.0, layer_decay=0.7
    ),
    "base-k400-pretrain": pretraining("base", batch=2048, epochs=1600.0),
    "base-k400-finetune": kinetics("base", batch=384, base_lr=5e-4, epochs=75.0),
    "base-k400-e800-pretrain": pretraining("base", batch=2048, epochs=800.0),
    "base-k400-e800-finetune": kinetics("base", batch=512, base_lr=1e-3, epochs=100.0, repeats=1),
    "base-ssv2-pretrain": pretraining("base", batch=2048, epochs=2400.0, rate=2),
    "base-ssv2-finetune": something("base", batch=384, base_lr=5e-4, epochs=30.0),
    "base-ssv2-e800-pretrain": pretraining("base", batch=2048, epochs=800.0, rate=2),
    "base-ssv2-e800-finetune": something("base", batch=512, base_lr=5e-4, epochs=50.0, repeats=1),
    "base-ucf101-pretrain": pretraining(
        "base", batch=192, epochs=3200.0, base_lr=3e-4, masking=Masking(kind="tube", ratio=0.75)
    ),
    "base-ucf101-finetune": kinetics(
        "base",
        batch=128,
        base_lr=5e-4,
        epochs=100.0,
        min_lr=1e-5,
        layer_decay=0.7,
        drop_path=0.2,
        head_dropout=0.5,
    ),
    "large-k400-pretrain": pretraining("large", batch=512, epochs=1600.0),
    "large-k400-finetune": kinetics("large", batch=128, base_lr=2e-3, epochs=35.0),
    "huge-k400-pretrain": pretraining("huge", batch=1024, epochs=1600.0),
    "huge-k400-finetune": kinetics(
        "huge", batch=512, base_lr=1e-3, epochs=50.0, min_lr=1e-5, drop_path=0.2, head_dropout=0.5
    ),
    # VideoMAE V2, on 1.35 million unlabelled videos: 300 epochs with 4 clips of each.
    "giant-hybrid-pretrain": pretraining(
        "giant",
        batch=2048,
        repeats=4,
        epochs=300.0,
        base_lr=6e-4,
        warmup_epochs=30.0,
        clip_norm=0.02,
        masking=DUAL,
    ),
    "giant-k400-finetune": kinetics(
        "giant", batch=192, base_lr=1e-3, epochs=30.0, drop_path=0.2, **GIANT
    ),
    "giant-k710-finetune": kinetics(
        "giant", batch=96, base_lr=1e-3, epochs=35.0, drop_path=0.3, clip_norm=5.0, **GIANT
    ),
    "giant-k710-k400-finetune": kinetics(
        "giant", batch=96, base_lr=1e-5, epochs=3.0, warmup_epochs=1.0, drop_path=0.25, **GIANT
    ),
    "giant-ssv2-finetune": something(
        "giant", batch=96, base_lr=3e-4, epochs=20.0, drop_path=0.25, layer_decay=0.9
    ),
}


def override(recipe: Recipe, arguments: list[str]) -> Recipe:
    """The recipe with fields set as on a command line: `["--optimizer.base-lr", "1e-3"]`.

    Raises:
        ValueError: for an unknown field, naming those like it, or a value it can't have.
    """
    if not arguments:
        return recipe
    import tyro

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            return tyro.cli(
                # A switch says its value like everything else: --remat False.
                tyro.conf.FlagConversionOff[Recipe],
                args=arguments,
                default=recipe,
                prog="recipe",
                add_help=False,
            )
    except SystemExit:
        raise ValueError(_one_line(said.getvalue())) from None


def _one_line(box: str) -> str:
    """tyro's message, which it draws a box around, and the first of the names that it guesses."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [line.strip(" │╭╮╰╯─|+") for line in plain.splitlines()]
    parts, part = [], []
    for line in [*lines, "---"]:
        if set(line) <= {"-", "─"}:
            parts, part = ([*parts, part], []) if part else (parts, part)
        else:
            part.append(line)
    # The first part is the kind of mistake.
    message = " ".join(parts[1] if len(parts) > 1 else parts[0])
    guess = next(
        (found for found in re.findall(r"(--[\w.-]+) ", plain.partition("Perhaps")[2])), ""
    )
    return f"{message}; did you mean {guess}?" if guess else message
