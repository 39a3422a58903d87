"""From a frozen model and two sets of labelled videos to what a probe finds, kept in a folder.

WORKDIR/features/    see `features`
WORKDIR/final/       linear: the model with the probe as its head, a converted directory
WORKDIR/probe.npz    attentive: the parameters of the probe, by their path
WORKDIR/probe.json   the figures
"""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from videomae_jax import scores
from videomae_jax.checkpoint import Description, save
from videomae_jax.inference import Checkpoint
from videomae_jax.labels import Labels
from videomae_jax.training.examples import Examples, check_alike
from videomae_jax.training.features import Features, features_of, pooled_model
from videomae_jax.training.finish import FORMAT, files_written
from videomae_jax.training.probe import (
    AttentiveProbe,
    LinearProbe,
    apply_attentive,
    fit_attentive,
    fit_linear,
    knn,
)
from videomae_jax.views import Views
from videomae_jax.writing import refuse_existing, write_json

logger = logging.getLogger(__name__)

Kind = Literal["linear", "attentive", "knn"]
KINDS = ("linear", "attentive", "knn")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probing:
    """How features are computed and probes fitted; all but the seed as elsewhere.

    epochs: of the attentive probe. progress: a bar for so many videos.
    """

    views: Views | None = None
    batch: int | None = None
    workers: int | None = None
    epochs: int = 30
    seed: int = 0
    on_bad: Callable[[str, ValueError], None] | None = None
    progress: Callable[[int], Callable[[Iterable[Any]], Iterator[Any]]] = lambda total: iter


def run_probe(
    kind: Kind,
    checkpoint: Checkpoint,
    *,
    train: Examples,
    validation: Examples,
    workdir: Path,
    probing: Probing | None = None,
) -> dict[str, Any]:
    """Fit a probe on `train` and count on `validation`, both of kind "single".

    Returns the figures of `scores.single_label` without the confusion, on the validation videos
    that could be read, with `count`, `failed` and what the probe was fitted with; the same lies in
    `workdir`. Features that are there from an earlier run are used again.

    Raises:
        ValueError: for sets without labels or with different classes, or no video that can be
            read.
        CheckpointError: if `workdir` has a model already, before anything is computed.
    """
    probing = Probing() if probing is None else probing
    classes = max(train.num_labels, 1)
    check_sets(train, validation)
    if kind == "linear":
        refuse_existing(workdir / "final")
    known, known_labels = _features(kind, checkpoint, train, workdir, "train", probing)
    asked, asked_labels = _features(kind, checkpoint, validation, workdir, "validation", probing)
    if kind == "linear":
        probe = fit_linear(known.values, known_labels, classes, seed=probing.seed)
        answers = probe(asked.values)
        fitted: dict[str, Any] = {
            "weight_decay": probe.decay,
            "held_out_top1": {f"{decay:g}": top1 for decay, top1 in probe.accuracies.items()},
        }
        write_classifier(workdir / "final", checkpoint, probe, train, fitted)
    elif kind == "attentive":
        answers, fitted = _attentive(checkpoint, known, known_labels, asked, classes, probing)
        np.savez(workdir / "probe.npz", **fitted.pop("arrays"))
    else:
        answers = knn(np.asarray(known.values), known_labels, np.asarray(asked.values), classes)
        fitted = {}
    figures = scores.single_label(np.asarray(answers, np.float64), asked_labels)
    del figures["confusion"]
    names = _names(train)
    figures["per_class"] = [
        {"index": index, "label": names[index], **entry}
        for index, entry in enumerate(figures["per_class"])
    ]
    found = {
        "kind": kind,
        **figures,
        "count": len(asked_labels),
        "failed": asked.failed,
        "train_count": len(known_labels),
        "train_failed": known.failed,
        **fitted,
    }
    write_json(workdir / "probe.json", found)
    return found


def check_sets(train: Examples, validation: Examples) -> None:
    """Refuse sets that can't be held against each other.

    Raises:
        ValueError: with what they have.
    """
    for name, examples in (("training", train), ("validation", validation)):
        if examples.labels is None or examples.labels.ndim != 1:
            raise ValueError(f"a probe needs one class for each video, the {name} set has none")
        if examples.packed is not None:
            raise ValueError(
                "a probe reads the videos themselves, not a packed folder; name what was packed"
            )
    check_alike(train, validation, num_labels=train.num_labels)


def write_classifier(
    directory: Path,
    checkpoint: Checkpoint,
    probe: LinearProbe,
    train: Examples,
    facts: dict[str, Any],
) -> None:
    """The frozen model with the probe as its head, as a converted directory.

    Raises:
        CheckpointError: if the directory exists or can't be written.
    """
    model, params = pooled_model(checkpoint)
    names = _names(train)
    config = dataclasses.replace(
        model.config, num_labels=len(names), problem_type="single_label_classification"
    )
    head = {"kernel": probe.kernel, "bias": probe.bias}
    whole = jax.tree.map(np.asarray, {**params, "classifier": head})
    description = Description(
        architecture="VideoClassifier",
        config=config,
        dtype="float32",
        preprocess=checkpoint.preprocess,
        labels=Labels(names),
        conversion={
            "format": FORMAT,
            "trained": {"probe": "linear", "videos": len(train), **facts},
            "source": checkpoint.conversion.get("source"),
        },
    )
    whole = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), whole)
    save(directory, whole, description, prove=lambda folder: {"written": files_written(folder)})


def _features(
    kind: Kind, checkpoint: Checkpoint, examples: Examples, workdir: Path, name: str, how: Probing
) -> tuple[Features, np.ndarray]:
    """The features of a set, and the labels of those videos."""
    of = "tokens" if kind == "attentive" else "pooled"
    found = features_of(
        checkpoint,
        examples.paths,
        kind=of,
        folder=workdir / "features",
        name=f"{name}-{of}",
        views=how.views,
        batch=how.batch,
        workers=how.workers,
        on_bad=how.on_bad,
        progress=how.progress(len(examples)),
    )
    assert examples.labels is not None
    return found, np.asarray(examples.labels, np.int64)[found.numbers]


def _attentive(
    checkpoint: Checkpoint,
    known: Features,
    labels: np.ndarray,
    asked: Features,
    classes: int,
    how: Probing,
) -> tuple[np.ndarray, dict[str, Any]]:
    probe = AttentiveProbe(classes=classes, heads=checkpoint.config.num_attention_heads)
    params = fit_attentive(known.values, labels, probe, epochs=how.epochs, seed=how.seed)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    arrays = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in leaves
    }
    answers = apply_attentive(probe, params, asked.values)
    return answers, {"epochs": how.epochs, "heads": probe.heads, "arrays": arrays}


def _names(train: Examples) -> tuple[str, ...]:
    return train.classes or Labels.numbered(train.num_labels).names
