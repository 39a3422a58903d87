"""Load a converted directory and classify clips: joins host and device."""

import dataclasses
import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from jax import Array
from jaxtyping import Float, UInt8

from videomae_jax.checkpoint import CheckpointError, Params, load_description, load_params
from videomae_jax.config import VideoMAEConfig
from videomae_jax.labels import Labels, Prediction
from videomae_jax.model import ARCHITECTURES, VideoClassifier, VideoModel, abstract_params
from videomae_jax.processing import Preprocess


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """A model with its weights and all that it takes to use them.

    `model.apply({"params": params}, preprocess(frames)[None])` is the whole of inference.
    `labels` is None for a model without classes; `conversion` is the conversion report.
    """

    model: VideoModel
    params: Params = dataclasses.field(repr=False)
    config: VideoMAEConfig
    labels: Labels | None
    preprocess: Preprocess
    conversion: Mapping[str, Any] = dataclasses.field(repr=False)


def load(directory: str | os.PathLike) -> Checkpoint:
    """Load a converted directory, its weights on the default device.

    Raises:
        CheckpointError: (a ValueError) if it is missing, incomplete, damaged or not converted; one
            line that names it and the mend.
    """
    description = load_description(directory)
    if description.architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"{Path(directory) / 'config.json'}: unknown architecture "
            f"{description.architecture!r}; one of: {', '.join(ARCHITECTURES)}"
        )
    model = ARCHITECTURES[description.architecture](description.config)
    return Checkpoint(
        model=model,
        params=load_params(directory, abstract_params(model, description.dtype)),
        config=description.config,
        labels=description.labels,
        preprocess=description.preprocess,
        conversion=description.conversion,
    )


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
    clip = checkpoint.preprocess(frames)[None]
    logits = np.asarray(apply_classifier(checkpoint.model, checkpoint.params, clip)[0])
    multi_label = checkpoint.config.problem_type == "multi_label_classification"
    return checkpoint.labels.rank(logits, top_k, multi_label=multi_label)


@functools.partial(jax.jit, static_argnums=0)
def apply_classifier(
    model: VideoClassifier, params: Params, clips: Float[Array, "B T H W C"]
) -> Float[Array, "B labels"]:
    """The compiled model; compiled once for each model and shape of clips."""
    # Without mutable collections `apply` returns the output alone; its type says it may not.
    return cast(Array, model.apply({"params": params}, clips))
