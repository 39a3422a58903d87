"""Load a converted directory and classify clips: joins host and device."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from jaxtyping import Float, UInt8

from videomae_jax.boxed import model_or_boxed
from videomae_jax.checkpoint import (
    CheckpointError,
    check_sizes,
    is_converted,
    load_description,
)
from videomae_jax.config import VideoMAEConfig
from videomae_jax.labels import Labels, Prediction
from videomae_jax.model import ARCHITECTURES, VideoClassifier, VideoModel, abstract_params
from videomae_jax.precision import compute_dtype
from videomae_jax.processing import Preprocess
from videomae_jax.weights import Params, load_params


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """A model with its weights and all that it takes to use them.

    `model.apply({"params": params}, preprocess(frames)[None])` is the whole of inference, and
    `apply_uint8({"params": params}, preprocess.resized(frames)[None])` with a quarter of the bytes
    on their way to the device. `labels` is None for a model without classes; `conversion` is the
    conversion report.
    """

    model: VideoModel
    params: Params = dataclasses.field(repr=False)
    config: VideoMAEConfig
    labels: Labels | None
    preprocess: Preprocess
    conversion: Mapping[str, Any] = dataclasses.field(repr=False)

    def apply_uint8(
        self,
        variables: Mapping[str, Any],
        frames: Array | np.ndarray,
        *rest: Any,
        **options: Any,
    ) -> Any:
        """`model.apply` on frames, uint8 [B, T, H, W, C], that are resized but not normalised.

        That is done here, in the program: the device gets a byte for each value where pixel values
        are four. Pure and for `jax.jit`, as `model.apply` is, whose are `rest` and `options`.

        Raises:
            ValueError: for frames of another dtype or shape.
        """
        scale, shift = self.preprocess.normalization()
        return apply_to_uint8(self.model, variables, frames, scale, shift, *rest, **options)


def apply_to_uint8(
    model: VideoModel,
    variables: Mapping[str, Any],
    frames: Array | np.ndarray,
    scale: Float[Array | np.ndarray, "colours"],
    shift: Float[Array | np.ndarray, "colours"],
    *rest: Any,
    **options: Any,
) -> Any:
    """`model.apply` on uint8 frames times `scale` plus `shift`, see `Preprocess.normalization`.

    Raises:
        ValueError: for frames of another dtype or shape.
    """
    if frames.dtype != np.uint8:
        raise ValueError(
            f"frames must be uint8, resized by the checkpoint's preprocess.resized, "
            f"got {frames.dtype} {list(frames.shape)}"
        )
    clips = frames.astype(np.float32) * scale + shift
    return model.apply(variables, clips, *rest, **options)


def load(
    source: str | os.PathLike | None = None,
    *,
    revision: str | None = None,
    num_heads: int | None = None,
    dtype: str = "float32",
    param_dtype: str | None = None,
    place: Callable[[Params], Params] | None = None,
) -> Checkpoint:
    """Load a checkpoint, its weights on the default device, or where `place` says.

    Args:
        source: a directory that `python -m convert` wrote; or what that reads (an id on the
            Hugging Face hub, a folder, a `.pth` file), which is converted on first use and kept in
            the user's cache; None is the model in the box (see `boxed.py`).
        revision: of an id on the hub: a branch, tag or commit.
        num_heads: attention heads in place of those that the config says. Their number changes no
            weight's shape; the published config of the small models says 16 where they were
            trained with 6 (see the README).
        dtype: what the model computes in, "float32" or "bfloat16" (see `precision.py`).
        param_dtype: what the parameters are cast to while they are read, "float32" or "bfloat16",
            half the memory; None leaves them as they are stored.
        place: from the tree of parameters as `jax.ShapeDtypeStruct` to one of shardings, such as
            `sharding.param_shardings`: each device reads no more than its part.

    Raises:
        CheckpointError: (a ValueError) if it is missing, incomplete, damaged or can't be
            converted; one line that names it and the mend.
        ValueError: if `num_heads`, `dtype` or `param_dtype` can't be.
    """
    _check_heads(num_heads)
    source = model_or_boxed(source)
    open_directory = functools.partial(
        _load_directory,
        num_heads=num_heads,
        dtype=compute_dtype(dtype),
        param_dtype=None if param_dtype is None else compute_dtype(param_dtype),
        place=place,
    )
    if is_converted(source) or not _is_source(source):
        if revision is not None:
            raise CheckpointError(f"{source} is a path: revision is for ids on the hub")
        return open_directory(Path(source))
    directory = _converted(source, revision, num_heads)
    try:
        return open_directory(directory)
    except CheckpointError:
        if not _forgotten(directory):
            raise
    return open_directory(_converted(source, revision, num_heads))


def _check_heads(num_heads: Any) -> None:
    whole = isinstance(num_heads, int) and not isinstance(num_heads, bool)
    if num_heads is not None and not (whole and num_heads >= 1):
        raise ValueError(f"num_heads must be a whole number of at least 1, got {num_heads!r}")


def _load_directory(
    directory: Path,
    *,
    num_heads: int | None,
    dtype: np.dtype,
    param_dtype: np.dtype | None,
    place: Callable[[Params], Params] | None,
) -> Checkpoint:
    description = load_description(directory)
    if description.architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"{directory / 'config.json'}: unknown architecture "
            f"{description.architecture!r}; one of: {', '.join(ARCHITECTURES)}"
        )
    config = description.config
    if num_heads is not None:
        if config.hidden_size % num_heads:
            raise ValueError(
                f"num_heads must divide the width of the model, {config.hidden_size}, "
                f"got {num_heads}"
            )
        config = dataclasses.replace(config, num_attention_heads=num_heads)
    model = ARCHITECTURES[description.architecture](config, dtype=dtype)
    check_sizes(directory, description.conversion)
    stored = description.dtype if param_dtype is None else param_dtype
    like = abstract_params(model, stored)
    if place is not None:
        like = jax.tree.map(lambda leaf, where: leaf.update(sharding=where), like, place(like))
    return Checkpoint(
        model=model,
        params=load_params(directory, like),
        config=config,
        labels=description.labels,
        preprocess=description.preprocess,
        conversion=description.conversion,
    )


def _cache():
    """The one door to `convert`: opened when a user hands over what isn't converted yet."""
    from convert import cache

    return cache


def _is_source(source: str | os.PathLike) -> bool:
    return _cache().is_source(source)


def _converted(source: str | os.PathLike, revision: str | None, num_heads: int | None) -> Path:
    try:
        return _cache().converted(source, revision=revision, num_heads=num_heads)
    # A ConversionError, whose text may be several problems; or a full disk.
    except (ValueError, OSError) as error:
        problems = "; ".join(str(error).splitlines())
        if num_heads is not None and "num_attention_heads" in problems:
            problems = f"num_heads can't be {num_heads}: {problems}"
        raise CheckpointError(problems) from error


def _forgotten(directory: Path) -> bool:
    """Whether a directory of the cache was damaged, and so is no more."""
    try:
        return _cache().forget_damaged(directory)
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def classify(
    checkpoint: Checkpoint, frames: UInt8[np.ndarray, "T H W C"], *, top_k: int = 5
) -> list[Prediction]:
    """The `top_k` most probable classes of one clip, most probable first.

    `frames` are the config's `num_frames` frames of any height and width, as `read_clip` gives
    them. A model with `problem_type` "multi_label_classification" gives each class a probability
    of its own (sigmoid).

    Raises:
        ValueError: for a model without classes, a regression model, or frames that do not fit.
    """
    if not isinstance(checkpoint.model, VideoClassifier) or checkpoint.labels is None:
        raise ValueError(
            f"a {type(checkpoint.model).__name__} without classes can't classify; "
            f"convert a fine-tuned checkpoint"
        )
    if checkpoint.config.problem_type == "regression":
        raise ValueError("a regression model has no classes; use checkpoint.model.apply")
    preprocess = checkpoint.preprocess
    logits = apply_classifier(
        _for_devices(checkpoint.model, checkpoint.params),
        checkpoint.params,
        preprocess.resized(frames)[None],
        *preprocess.normalization(),
    )
    multi_label = checkpoint.config.problem_type == "multi_label_classification"
    return checkpoint.labels.rank(np.asarray(logits)[0], top_k, multi_label=multi_label)


def _for_devices(model: VideoClassifier, params: Params) -> VideoClassifier:
    """The model as it is best traced for the devices that its parameters are on.

    A backend that follows the device is traced for all kinds of them, which takes longer than all
    the rest of the model.
    """
    platforms = {device.platform for device in jax.tree.leaves(params)[0].devices()}
    if model.attention_backend is None and platforms == {"cpu"}:
        return model.clone(attention_backend="blocked")
    return model


@functools.partial(jax.jit, static_argnums=0)
def apply_classifier(
    model: VideoClassifier,
    params: Params,
    frames: UInt8[Array, "B T H W C"],
    scale: Float[Array, "colours"],
    shift: Float[Array, "colours"],
) -> Float[Array, "B labels"]:
    """The compiled model; compiled once for each model and shape of frames."""
    return apply_to_uint8(model, {"params": params}, frames, scale, shift)
