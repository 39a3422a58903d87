"""What is a training run made of? Frozen dataclasses, plain data; the published runs are values.

`recipes.RECIPES` has a `Recipe` for each published run; every field of one can be set from the
command line by its dotted name, `--optimizer.base-lr 1e-3`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from videomae_jax.config import VideoMAEConfig


def _check(
    settings: Any,
    *,
    counts: Sequence[str] = (),
    amounts: Sequence[str] = (),
    shares: Sequence[str] = (),
    parts: Sequence[str] = (),
) -> None:
    """Refuse what can't be: counts below 1, amounts below 0, shares over 1 and parts of 1.

    Raises:
        ValueError: naming the field.
    """
    rules = (
        (counts, "at least 1", lambda value: value >= 1),
        (amounts, "at least 0", lambda value: value >= 0),
        (shares, "0 to 1", lambda value: 0 <= value <= 1),
        (parts, "at least 0 and less than 1", lambda value: 0 <= value < 1),
    )
    for names, wanted, allowed in rules:
        for name in names:
            value = getattr(settings, name)
            if not allowed(value):
                raise ValueError(f"{name} must be {wanted}, got {value}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Input:
    """Which frames of which videos a step sees.

    batch_size: videos of one update, over all hosts and accumulated parts.
    repeats: clips that augmentation makes of each video's frames ("repeated augmentation"), so
        that a step computes batch_size * repeats clips.
    sampling, rate: how frames are chosen, see `videomae_jax.sampling`; "kinetics_train",
        "ssv2_train", "pretraining", or a deterministic rule of `SAMPLING`.
    canvas: height and width that frames are resized to on the host, before augmentation on the
        device crops them; 0 means 8/7 of the model's, as 256 is of 224.
    workers: decode processes a host; 0 decodes in threads of the training process.
    """

    batch_size: int
    repeats: int = 1
    sampling: str = "kinetics_train"
    rate: int = 4
    canvas: int = 0
    workers: int = 0

    def __post_init__(self):
        _check(self, counts=("batch_size", "repeats", "rate"), amounts=("canvas", "workers"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW, its schedule and what is done to gradients and weights around it.

    base_lr: the peak rate for 256 videos a step; it scales with batch_size / 256, and so do
        min_lr and warmup_lr.
    epochs, warmup_epochs: the warm-up is linear from warmup_lr, then a cosine to min_lr, a step
        at a time.
    layer_decay: factor on the rate for each layer further from the head; 1 is none.
    clip_norm: largest norm of the gradient, 0 is any.
    accumulate: parts that a step's batch is computed in, one after the other.
    ema: share of the old average kept in each step, 0 keeps no average.
    """

    base_lr: float
    epochs: float
    warmup_epochs: float
    min_lr: float = 1e-6
    warmup_lr: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    clip_norm: float = 0.0
    accumulate: int = 1
    ema: float = 0.0

    def __post_init__(self):
        _check(self, counts=("accumulate",), amounts=("clip_norm", "weight_decay"), parts=("ema",))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augment:
    """What happens to the frames of a clip on the device, in this order.

    randaugment: a policy as timm writes it, "rand-m7-n4-mstd0.5-inc1"; "" is none.
    crop: "resized" (random area and aspect), "multi_scale" (random scale of the short side, as
        in pre-training), "centre".
    crop_area, crop_aspect: ranges of "resized".
    flip: probability of mirroring left and right.
    erase: probability of random erasing, the same box in all frames, filled with noise.
    mixup, cutmix: the alphas of their Beta distributions; 0 is none. mix: probability of either;
        mix_switch: of cutmix, where both are on.
    smoothing: of the labels.
    """

    randaugment: str = ""
    crop: Literal["resized", "multi_scale", "centre"] = "resized"
    crop_area: tuple[float, float] = (0.08, 1.0)
    crop_aspect: tuple[float, float] = (0.75, 4 / 3)
    flip: float = 0.0
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix: float = 1.0
    mix_switch: float = 0.5
    smoothing: float = 0.0

    def __post_init__(self):
        shares = ("flip", "erase", "mix", "mix_switch", "smoothing")
        _check(self, amounts=("mixup", "cutmix"), shares=shares)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Masking:
    """Which tokens pre-training hides.

    kind: "tube" (the same places in every frame), "random", or "dual" (tubes for the encoder, and
        the decoder reconstructs a running-cell half: VideoMAE V2).
    ratio: share of tokens that the encoder doesn't see.
    """

    kind: Literal["tube", "random", "dual"] = "tube"
    ratio: float = 0.9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run.

    task: "pretrain" or "finetune".
    model: the network; num_labels is set by the data where it is 0.
    mean, std: of the colours, what clips are normalised with.
    drop_path: probability of leaving a block's branch out, at the last layer (linear over depth).
    head_dropout: before the classifier.
    dtype: what is computed in; parameters and optimizer are float32.
    remat: compute each layer's inside again in the backward pass, in a tenth of the memory.
    class_weights: "" or "balanced" (inverse to a class's frequency).
    checkpoint_every, keep: steps between checkpoints (0: once an epoch), and how many are kept.
    evaluate_every: epochs between evaluations on the validation part, 0 for none.
    """

    task: Literal["pretrain", "finetune"]
    model: VideoMAEConfig
    input: Input
    optimizer: Optimizer
    augment: Augment = Augment()
    masking: Masking = Masking()
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    drop_path: float = 0.0
    head_dropout: float = 0.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = True
    class_weights: Literal["", "balanced"] = ""
    seed: int = 0
    checkpoint_every: int = 0
    keep: int = 1
    evaluate_every: float = 1.0

    def __post_init__(self):
        amounts = ("seed", "checkpoint_every", "evaluate_every")
        _check(self, counts=("keep",), amounts=amounts, parts=("drop_path", "head_dropout"))
