import dataclasses
import math
import re

import jax
import pytest

from videomae_jax.model import abstract_params
from videomae_jax.training.recipes import RECIPES, override
from videomae_jax.training.settings import Augment
from videomae_jax.training.step import build_model

SMALL = RECIPES["small-k400-finetune"]

# Videos a step, clips of each, base rate, epochs, warm-up, least rate, every how many frames.
PRETRAINING = {
    "small-k400": (1024, 1, 1.5e-4, 1600, 40, 1e-5, 4),
    "small-ssv2": (1024, 1, 1.5e-4, 2400, 40, 1e-5, 2),
    "base-k400": (2048, 1, 1.5e-4, 1600, 40, 1e-5, 4),
    "base-k400-e800": (2048, 1, 1.5e-4, 800, 40, 1e-5, 4),
    "base-ssv2": (2048, 1, 1.5e-4, 2400, 40, 1e-5, 2),
    "base-ssv2-e800": (2048, 1, 1.5e-4, 800, 40, 1e-5, 2),
    "base-ucf101": (192, 1, 3e-4, 3200, 40, 1e-5, 4),
    "large-k400": (512, 1, 1.5e-4, 1600, 40, 1e-5, 4),
    "huge-k400": (1024, 1, 1.5e-4, 1600, 40, 1e-5, 4),
    "giant-hybrid": (2048, 4, 6e-4, 300, 30, 1e-5, 4),
}
# Videos a step, clips of each, base rate, epochs, warm-up, least rate, layer decay, weight decay,
# drop path, dropout before the head.
FINETUNING = {
    "small-k400": (384, 2, 5e-4, 150, 5, 1e-6, 0.75, 0.05, 0.1, 0.0),
    "small-ssv2": (384, 2, 1e-3, 40, 5, 1e-6, 0.7, 0.05, 0.1, 0.0),
    "base-k400": (384, 2, 5e-4, 75, 5, 1e-6, 0.75, 0.05, 0.1, 0.0),
    "base-k400-e800": (512, 1, 1e-3, 100, 5, 1e-6, 0.75, 0.05, 0.1, 0.0),
    "base-ssv2": (384, 2, 5e-4, 30, 5, 1e-6, 0.75, 0.05, 0.1, 0.0),
    "base-ssv2-e800": (512, 1, 5e-4, 50, 5, 1e-6, 0.75, 0.05, 0.1, 0.0),
    "base-ucf101": (128, 2, 5e-4, 100, 5, 1e-5, 0.7, 0.05, 0.2, 0.5),
    "large-k400": (128, 2, 2e-3, 35, 5, 1e-6, 0.75, 0.05, 0.1, 0.0),
    "huge-k400": (512, 2, 1e-3, 50, 5, 1e-5, 0.75, 0.05, 0.2, 0.5),
    "giant-k400": (192, 2, 1e-3, 30, 5, 1e-6, 0.9, 0.1, 0.2, 0.0),
    "giant-k710": (96, 2, 1e-3, 35, 5, 1e-6, 0.9, 0.1, 0.3, 0.0),
    "giant-k710-k400": (96, 2, 1e-5, 3, 1, 1e-6, 0.9, 0.1, 0.25, 0.0),
    "giant-ssv2": (96, 2, 3e-4, 20, 5, 1e-6, 0.9, 0.05, 0.25, 0.0),
}
CLIP_NORMS = {"giant-hybrid-pretrain": 0.02, "giant-k710-finetune": 5.0}
# Width, layers, heads, hidden layer; the decoder's: width, heads, layers.
SIZES = {
    "small": (384, 12, 6, 1536, 192, 3, 4),
    "base": (768, 12, 12, 3072, 384, 6, 4),
    "large": (1024, 24, 16, 4096, 512, 8, 12),
    "huge": (1280, 32, 16, 5120, 640, 8, 12),
    "giant": (1408, 40, 16, 6144, 512, 8, 4),
}
# With the 400 classes of Kinetics. That of the giant is only published as 1.01 billion: by hand,
# 40 x (4 D^2 + 2 D F + 8 D + F) + 1177 D + 2 D + 400 D + 400 with D = 1408, F = 6144.
PARAMETERS = {
    "small": 22_033_936,
    "base": 86_534_800,
    "large": 304_270_736,
    "huge": 632_119_440,
    "giant": 1_012_174_352,
}


def published(task: str) -> dict:
    return {
        name.removesuffix(f"-{task}"): recipe
        for name, recipe in RECIPES.items()
        if name.endswith(task) and not name.startswith("tiny")
    }


def test_pretraining_has_the_published_values():
    given = {}
    for name, recipe in published("pretrain").items():
        seen, chosen = recipe.input, recipe.optimizer
        given[name] = (
            *(seen.batch_size, seen.repeats),
            *(chosen.base_lr, chosen.epochs, chosen.warmup_epochs, chosen.min_lr),
            seen.rate,
        )
        assert recipe.task == "pretrain"
        assert seen.sampling == "pretraining"
        assert chosen.betas == (0.9, 0.95)
        assert (chosen.weight_decay, chosen.layer_decay, chosen.warmup_lr) == (0.05, 1.0, 0.0)
        assert recipe.augment == Augment(crop="multi_scale")
        assert (recipe.drop_path, recipe.head_dropout) == (0.0, 0.0)
        assert not recipe.model.use_mean_pooling
    assert given == PRETRAINING


def test_masks_are_the_published_ones():
    for name, recipe in published("pretrain").items():
        ratio = 0.75 if name == "base-ucf101" else 0.9
        kind = "dual" if name == "giant-hybrid" else "tube"
        assert (recipe.masking.kind, recipe.masking.ratio) == (kind, ratio), name


def test_finetuning_has_the_published_values():
    given = {}
    for name, recipe in published("finetune").items():
        seen, chosen = recipe.input, recipe.optimizer
        given[name] = (
            *(seen.batch_size, seen.repeats, chosen.base_lr, chosen.epochs, chosen.warmup_epochs),
            *(chosen.min_lr, chosen.layer_decay, chosen.weight_decay),
            *(recipe.drop_path, recipe.head_dropout),
        )
        assert recipe.task == "finetune"
        assert (chosen.betas, chosen.warmup_lr, chosen.ema) == ((0.9, 0.999), 0.0, 0.0)
        assert recipe.model.use_mean_pooling
    assert given == FINETUNING


def test_finetuning_augments_as_published():
    for name, recipe in published("finetune").items():
        spread = "ssv2" in name
        assert recipe.input.sampling == ("ssv2_train" if spread else "kinetics_train"), name
        assert recipe.input.rate == 4
        assert recipe.augment == Augment(
            randaugment="rand-m7-n4-mstd0.5-inc1",
            crop="resized",
            crop_area=(0.08, 1.0),
            crop_aspect=(0.75, 4 / 3),
            flip=0.0 if spread else 0.5,
            erase=0.25,
            mixup=0.8,
            cutmix=1.0,
            mix=1.0,
            mix_switch=0.5,
            smoothing=0.1,
        ), name


def test_what_is_common_to_all():
    for name, recipe in RECIPES.items():
        assert recipe.optimizer.eps == 1e-8
        assert recipe.optimizer.accumulate == 1
        if not name.startswith("tiny"):
            assert recipe.optimizer.clip_norm == CLIP_NORMS.get(name, 0.0), name
            assert recipe.dtype == "bfloat16"
        assert recipe.mean == (0.485, 0.456, 0.406)
        assert recipe.std == (0.229, 0.224, 0.225)
        assert recipe.model.num_labels == 0, "the data says how many"


def test_networks_are_the_published_ones():
    for name, recipe in RECIPES.items():
        config, size = recipe.model, name.partition("-")[0]
        # 1e-6 in every norm, where transformers has 1e-12 and 1e-5.
        assert config.layer_norm_eps == config.fc_norm_eps == config.decoder_norm_eps == 1e-6
        if size == "tiny":
            continue
        assert SIZES[size] == (
            *(config.hidden_size, config.num_hidden_layers, config.num_attention_heads),
            *(config.intermediate_size, config.decoder_hidden_size),
            *(config.decoder_num_attention_heads, config.decoder_num_hidden_layers),
        ), name
        assert config.patch_size == ((14, 14) if size == "giant" else (16, 16))
        assert (config.num_frames, config.image_size) == (16, (224, 224))


@pytest.mark.parametrize("size", PARAMETERS)
def test_parameters_are_as_many_as_published(size):
    name = f"{size}-k400-finetune"
    recipe = RECIPES[name]
    model = dataclasses.replace(recipe.model, num_labels=400)
    network = build_model(dataclasses.replace(recipe, model=model))
    leaves = jax.tree.leaves(abstract_params(network))
    assert sum(math.prod(leaf.shape) for leaf in leaves) == PARAMETERS[size]


def test_every_pretraining_network_can_be_built():
    for recipe in published("pretrain").values():
        params = abstract_params(build_model(recipe))
        assert {"encoder", "decoder", "mask_token", "encoder_to_decoder"} == set(params)


# Fields from the command line.


def test_fields_are_set_by_their_dotted_names():
    words = "--optimizer.base-lr 1e-2 --mean .5 .4 .3 --remat False --dtype float32 --seed 3"
    options = "--model.image-size 32 48 --model.problem-type regression --augment.randaugment= "
    given = override(SMALL, (words + " " + options).split())
    assert given == dataclasses.replace(
        SMALL,
        optimizer=dataclasses.replace(SMALL.optimizer, base_lr=0.01),
        model=dataclasses.replace(SMALL.model, image_size=(32, 48), problem_type="regression"),
        augment=dataclasses.replace(SMALL.augment, randaugment=""),
        mean=(0.5, 0.4, 0.3),
        remat=False,
        dtype="float32",
        seed=3,
    )


def test_nothing_said_is_nothing_changed():
    assert override(SMALL, []) is SMALL
    for recipe in RECIPES.values():
        assert override(recipe, ["--seed", "0"]) == recipe


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("--optimizer.base-lrr 1", "--optimizer.base-lrr, 1; did you mean --optimizer.base-lr?"),
        ("--optimiser.epochs 1", "did you mean --optimizer.epochs?"),
        ("--no-remat", "did you mean --remat?"),
        ("--optimizer.base-lr fast", "--optimizer.base-lr: could not convert string to float"),
        ("--dtype float16", "Expected one of ('float32', 'bfloat16')"),
        ("--augment.crop resize", "Expected one of ('resized', 'multi_scale', 'centre')"),
        ("--model.image-size 32", "'--model.image-size'. Expected 2 values"),
        ("--model.image-size 32 33", "width 33 is not a multiple of patch_size width 16"),
        ("--model.num-attention-heads 5", "not a multiple of num_attention_heads 5"),
        ("--optimizer.accumulate 0", "accumulate must be at least 1, got 0"),
        ("--optimizer.ema 1", "ema must be at least 0 and less than 1, got 1.0"),
        ("--optimizer.clip-norm nan", "clip_norm must be at least 0, got nan"),
        ("--input.repeats 0", "repeats must be at least 1, got 0"),
        ("--augment.erase 25", "erase must be 0 to 1, got 25.0"),
        ("--seed -1", "seed must be at least 0, got -1"),
        ("--drop-path 1", "drop_path must be at least 0 and less than 1, got 1.0"),
        ("--checkpoint-every -1", "checkpoint_every must be at least 0, got -1"),
        ("stray", "Unrecognized options: stray"),
        ("--help", "Unrecognized options: --help"),
    ],
)
def test_a_mistake_is_one_line(words, complaint, capsys):
    with pytest.raises(ValueError, match=re.escape(complaint)) as error:
        override(SMALL, words.split())
    assert "\n" not in str(error.value)
    assert capsys.readouterr() == ("", "")
