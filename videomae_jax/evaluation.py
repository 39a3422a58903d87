"""How good is a model on labelled videos? Figures as they are published, and what they hide."""

import difflib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from videomae_jax import scores
from videomae_jax.batches import run_videos
from videomae_jax.config import VideoMAEConfig
from videomae_jax.inference import Checkpoint
from videomae_jax.labels import Labels
from videomae_jax.model import VideoClassifier
from videomae_jax.published import published_figures
from videomae_jax.views import Views, merge_views

logger = logging.getLogger(__name__)

Kind = Literal["single", "multi", "regression"]
SINGLE = "single_label_classification"
"""The problem type of a model that says none."""
KINDS: dict[str, Kind] = {
    SINGLE: "single",
    "multi_label_classification": "multi",
    "regression": "regression",
}
"""What kind of labels a model's problem type wants, as `training.examples` calls it."""


@runtime_checkable
class LabelledVideos(Protocol):
    """Videos and what they are; `training.examples.Examples` is one.

    labels: int [n], class numbers; or float [n, K]. classes: the names that the numbers stand for,
    in order; None where the numbers are the model's own.
    """

    @property
    def paths(self) -> Sequence[str]: ...

    @property
    def labels(self) -> np.ndarray | None: ...

    @property
    def classes(self) -> tuple[str, ...] | None: ...


def label_kind(checkpoint: Checkpoint) -> Kind:
    """What labels the model is to be held against, "single", "multi" or "regression".

    Raises:
        ValueError: for a model that answers nothing.
    """
    if not isinstance(checkpoint.model, VideoClassifier) or not checkpoint.config.num_labels:
        raise ValueError(
            f"a {type(checkpoint.model).__name__} without classes can't be evaluated; fine-tune "
            f"it, or see `videomae probe`"
        )
    return KINDS[checkpoint.config.problem_type or SINGLE]


def evaluate(
    checkpoint: Checkpoint,
    examples: LabelledVideos,
    *,
    views: Views | None = None,
    batch: int | None = None,
    shuffle_frames: int | None = None,
    workers: int | None = None,
    on_bad: Callable[[str, ValueError], None] | None = None,
    progress: Callable[[Iterable[Any]], Iterator[Any]] = iter,
) -> dict[str, Any]:
    """Figures of a model on labelled videos, ready for JSON; shares are from 0 to 1.

    `count` videos were read, `failed` were not, and are in no other figure. Single label: `top1`,
    `top5`, `interval`, `per_class`, `confusion` (see `scores.single_label`), and in `published`
    what is known of the checkpoint. Multi-label: `map` and `per_class`. Regression: `mse`, `mae`,
    `r2` and `per_output`.

    Args:
        views: clips of each video, whose answers are merged; one by default.
        batch: clips a device at a time; None follows the kind of device.
        shuffle_frames: a seed; the frames of each clip are put in random order, which leaves what
            can be seen in pictures, and takes what is in their order.
        workers: videos decoded at a time; one a core by default.
        on_bad: called with the path and the error of a video that can't be read; by default it is
            logged.
        progress: what the videos go through as they are read; there are len(examples.paths).

    Raises:
        ValueError: for a model without classes, labels that it doesn't know, before any video is
            opened; if no video can be read; for outputs that are not finite.
    """
    kind = label_kind(checkpoint)
    targets = match_labels(examples, checkpoint.config, checkpoint.labels)
    bad: list[int] = []

    def report(number: int, error: ValueError) -> None:
        bad.append(number)
        if on_bad is not None:
            on_bad(examples.paths[number], error)
        else:
            logger.warning("%s", error)

    answers = run_videos(
        checkpoint.model,
        checkpoint.params,
        checkpoint.preprocess,
        examples.paths,
        views=Views() if views is None else views,
        batch=batch,
        workers=workers,
        change=None if shuffle_frames is None else _in_disorder(shuffle_frames),
        on_bad=report,
        progress=progress,
    )
    merged = {number: _merged(outputs, kind) for number, outputs in answers}
    if not merged:
        raise ValueError(f"none of the {len(examples.paths)} videos can be read")
    figures = _FIGURES[kind](np.stack(list(merged.values())), targets[list(merged)])
    if "per_class" in figures:
        labels = checkpoint.labels or Labels.numbered(checkpoint.config.num_labels)
        figures["per_class"] = _named(figures["per_class"], labels)
    found = published_figures(checkpoint.conversion, checkpoint.config.num_labels)
    published = found._asdict() if found is not None and kind == "single" else None
    return {**figures, "count": len(merged), "failed": len(bad), "published": published}


_FIGURES = {
    "single": scores.single_label,
    "multi": scores.multi_label,
    "regression": scores.regression,
}


def match_labels(
    examples: LabelledVideos, config: VideoMAEConfig, labels: Labels | None
) -> np.ndarray:
    """The labels of videos as the model numbers them: int [N], or float [N, K].

    A class is found by its name; else by the same without regard to case, with `_` for a space; or
    its name is its number.

    Raises:
        ValueError: for videos without labels, or labels that the model doesn't know, with all of
            them.
    """
    if examples.labels is None:
        raise ValueError("the videos have no labels; evaluation needs one for each")
    given, count = np.asarray(examples.labels), config.num_labels
    if config.problem_type == "regression":
        values = given.reshape(len(given), -1).astype(np.float64)
        if values.shape[1] != count:
            raise ValueError(f"the model gives {count} numbers, the labels have {values.shape[1]}")
        return values
    used = np.unique(given) if given.ndim == 1 else np.flatnonzero(given.any(axis=0))
    if examples.classes is not None:
        known = labels if labels is not None else Labels.numbered(count)
        own = _numbers_of([examples.classes[number] for number in used], known)
    else:
        own = used.astype(np.int64)
        wrong = [str(number) for number in own if not 0 <= number < count]
        if wrong:
            raise ValueError(
                f"the model has classes 0 to {count - 1}, the labels have {_some(wrong)} too"
            )
    if given.ndim == 1:
        return own[np.searchsorted(used, given)]
    moved = np.zeros((len(given), count), np.float64)
    for column, number in zip(used, own, strict=True):
        # Two names of the data may be one class of the model.
        moved[:, number] = np.maximum(moved[:, number], given[:, column])
    return moved


def _numbers_of(classes: Sequence[str], labels: Labels) -> np.ndarray:
    """The model's number of each name, int64."""
    exact = {name: number for number, name in reversed(list(enumerate(labels.names)))}
    alike: dict[str, list[int]] = {}
    for number, name in enumerate(labels.names):
        alike.setdefault(_plain(name), []).append(number)
    found, unknown = [], []
    for name in classes:
        near = alike.get(_plain(name), [])
        if name in exact:
            found.append(exact[name])
        elif len(near) == 1:
            found.append(near[0])
        elif name.isdecimal() and int(name) < len(labels):
            found.append(int(name))
        else:
            unknown.append(name)
    if unknown:
        guesses = difflib.get_close_matches(unknown[0], labels.names, n=1)
        hint = f"; is {unknown[0]!r} {guesses[0]!r}?" if guesses else ""
        some = ", ".join(labels.names[:5]) + ", ..." * (len(labels) > 5)
        raise ValueError(
            f"{len(unknown)} of the {len(classes)} labels are no class of the model: "
            f"{_some(map(repr, unknown))}{hint} It has {len(labels)}: {some}"
        )
    return np.array(found, np.int64)


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").split())


def _some(texts: Iterable[str], most: int = 5) -> str:
    texts = list(texts)
    return ", ".join(texts[:most]) + ", ..." * (len(texts) > most)


def _named(entries: list[dict[str, Any]], labels: Labels) -> list[dict[str, Any]]:
    """The entries of all classes, with number and name in front."""
    return [
        {"index": index, "label": name, **entry}
        for index, (name, entry) in enumerate(zip(labels.names, entries, strict=True))
    ]


def _merged(outputs: np.ndarray, kind: str) -> np.ndarray:
    """The answer of a video, float64 [K], from those of its views [V, K].

    Raises:
        ValueError: for one that is not finite.
    """
    if not np.isfinite(outputs).all():
        raise ValueError("the model gives numbers that are not finite; convert it again")
    if kind == "regression":
        return outputs.astype(np.float64).mean(axis=0)
    return merge_views(outputs, multi_label=kind == "multi")


def _in_disorder(seed: int) -> Callable[[int, np.ndarray], np.ndarray]:
    """Puts the frames of clips [V, T, ...] in an order of its own for each, by seed and video."""

    def change(number: int, clips: np.ndarray) -> np.ndarray:
        generator = np.random.default_rng((seed, number))
        return np.stack([clip[generator.permutation(len(clip))] for clip in clips])

    return change
