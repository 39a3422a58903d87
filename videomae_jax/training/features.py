"""What a frozen model says of videos: computed once, and kept in a folder.

FOLDER/NAME.npy     a row for each video that could be read
FOLDER/NAME.json    which videos those are, and a digest of what they were computed from;
                    written last: where it stands and fits, the rows are used again
"""

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from videomae_jax.batches import run_videos
from videomae_jax.inference import Checkpoint
from videomae_jax.model import VideoClassifier, VideoEncoder, VideoModel
from videomae_jax.model_digest import model_digest
from videomae_jax.views import Views
from videomae_jax.weights import Params
from videomae_jax.writing import write_json

logger = logging.getLogger(__name__)

FORMAT = "videomae_jax/features/1"
Kind = Literal["pooled", "tokens"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Features:
    """Rows of N videos: "pooled" float32 [N, D], or "tokens" float16 [N, L, D], from the disk.

    numbers: int64 [N], which of the paths each is of; failed: how many could not be read.
    """

    values: np.ndarray
    numbers: np.ndarray
    failed: int


def pooled_model(checkpoint: Checkpoint) -> tuple[VideoClassifier, Params]:
    """A network of the checkpoint's weights whose outputs [B, D] are what a head would see.

    A classifier's are what its own head sees. An encoder's, or a pre-trained model's, are the mean
    of its tokens, normalised as a fresh classifier would: without the encoder's own norm, which
    fine-tuning leaves out, too.
    """
    params = dict(checkpoint.params)
    if isinstance(checkpoint.model, VideoClassifier):
        params.pop("classifier", None)
        config = dataclasses.replace(checkpoint.config, num_labels=0)
    else:
        encoder = dict(params.get("encoder", params))
        encoder.pop("norm", None)
        width = checkpoint.config.hidden_size
        params = {
            "encoder": encoder,
            "fc_norm": {"scale": np.ones(width, np.float32), "bias": np.zeros(width, np.float32)},
        }
        config = dataclasses.replace(checkpoint.config, num_labels=0, use_mean_pooling=True)
    return VideoClassifier(config, dtype=checkpoint.model.dtype), params


def token_model(checkpoint: Checkpoint) -> tuple[VideoEncoder, Params]:
    """The encoder, whose outputs are all tokens [B, L, D], with its own norm if it has one."""
    params = checkpoint.params
    model = VideoEncoder(checkpoint.config, dtype=checkpoint.model.dtype)
    return model, params.get("encoder", params)


def features_of(
    checkpoint: Checkpoint,
    paths: Sequence[str],
    *,
    kind: Kind,
    folder: Path,
    name: str,
    views: Views | None = None,
    batch: int | None = None,
    workers: int | None = None,
    on_bad: Callable[[str, ValueError], None] | None = None,
    progress: Callable[[Iterable[Any]], Iterator[Any]] = iter,
) -> Features:
    """The features of videos, from the folder if the same were computed before.

    Pooled features are the mean over views; tokens are of one view. Model, videos (their sizes and
    times, too), views and precision decide whether features are the same.

    Args:
        folder, name: where they are kept; what is there of something else is replaced.
        batch, workers, on_bad, progress: as `evaluation.evaluate` has them.

    Raises:
        ValueError: if no video can be read; for several views of tokens; for numbers that are not
            finite.
    """
    views = Views() if views is None else views
    if kind == "tokens" and views.count > 1:
        raise ValueError(f"tokens are of one view, got {views}")
    digest = _digest(checkpoint, paths, kind, views)
    kept = _kept(folder, name, digest)
    if kept is not None:
        logger.info("%s: the features of an earlier run are used", folder / f"{name}.npy")
        return kept
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").unlink(missing_ok=True)
    bad: list[int] = []

    def report(number: int, error: ValueError) -> None:
        bad.append(number)
        if on_bad is not None:
            on_bad(paths[number], error)
        else:
            logger.warning("%s", error)

    model, params = (pooled_model if kind == "pooled" else token_model)(checkpoint)
    rows = run_videos(
        model,
        params,
        checkpoint.preprocess,
        paths,
        views=views,
        batch=batch,
        workers=workers,
        finish=_in_float32,
        on_bad=report,
        progress=progress,
    )
    numbers = _write(folder / f"{name}.npy", rows, len(paths), _shape(model, kind))
    if not numbers:
        raise ValueError(f"none of the {len(paths)} videos can be read")
    entries = {"format": FORMAT, "digest": digest, "numbers": numbers, "failed": len(bad)}
    write_json(folder / f"{name}.json", entries)
    kept = _kept(folder, name, digest)
    assert kept is not None
    return kept


def _shape(model: VideoModel, kind: Kind) -> tuple[int, ...]:
    width = model.config.hidden_size
    return (width,) if kind == "pooled" else (model.config.num_tokens, width)


def _in_float32(outputs: Any) -> Any:
    return outputs.astype(jnp.float32)


def _write(
    file: Path, rows: Iterable[tuple[int, np.ndarray]], count: int, shape: tuple[int, ...]
) -> list[int]:
    """Write the mean over views of each video, a row after the other; returns their numbers."""
    dtype = np.float32 if len(shape) == 1 else np.float16
    values = np.lib.format.open_memmap(file, "w+", dtype, (count, *shape))
    numbers = []
    for number, outputs in rows:
        with np.errstate(over="ignore"):
            row = outputs.mean(axis=0).astype(dtype)
        if not np.isfinite(row).all():
            raise ValueError("the model gives numbers that are not finite; convert it again")
        values[len(numbers)] = row
        numbers.append(number)
    values.flush()
    return numbers


def _kept(folder: Path, name: str, digest: str) -> Features | None:
    """What the folder has, if it is of that digest and whole."""
    try:
        entries = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        if entries["format"] != FORMAT or entries["digest"] != digest:
            return None
        values = np.load(folder / f"{name}.npy", mmap_mode="r")
        numbers = np.array(entries["numbers"], np.int64)
        failed = int(entries["failed"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return Features(values=values[: len(numbers)], numbers=numbers, failed=failed)


def _digest(checkpoint: Checkpoint, paths: Sequence[str], kind: Kind, views: Views) -> str:
    """Of all that decides about the features."""
    content = [
        model_digest(checkpoint),
        str(jnp.dtype(checkpoint.model.dtype)),
        kind,
        dataclasses.asdict(views),
        [_mark(path) for path in paths],
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _mark(path: str) -> list[Any]:
    try:
        found = os.stat(path)
    except OSError:
        return [path]
    return [path, found.st_size, found.st_mtime_ns]
