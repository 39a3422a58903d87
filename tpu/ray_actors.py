"""What runs on Ray's machines: an actor that decodes, and one that holds the model.

Rows travel between them as columns: `row`, `clips` uint8 [rows, V, T, h, w, C], zeros where
there is an `error`, and `TOLD`.
"""

import argparse
import os
import queue
from typing import TYPE_CHECKING, Any

import numpy as np

from tpu.decode_pool import Answer, DecodePool
from tpu.job import Job, JobError
from tpu.reading import Reading

if TYPE_CHECKING:
    import pyarrow as pa

PLATFORMS = {"TPU": "tpu,cpu", "GPU": "cuda,cpu", "CPU": "cpu"}
"""What JAX may use, by the resource of Ray's that a predict actor has."""

TOLD = ("frames", "duration_s", "decode_s", "retries", "error")
LOOK_S = 1.0


class DecodeVideos:
    """Decodes batches of {row, location}; an actor a core, with a decode process of its own."""

    def __init__(self, reading: Reading, timeout_s: float, remote: bool):
        self._reading = reading
        self._requests: queue.SimpleQueue[tuple[int, str] | None] = queue.SimpleQueue()
        self._pool = DecodePool(
            reading,
            iter(self._requests.get, None),
            workers=1,
            timeout_s=timeout_s,
            remote=remote,
        ).__enter__()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        rows = batch["row"].tolist()
        for row, location in zip(rows, batch["location"].tolist(), strict=True):
            self._requests.put((row, location))
        clips = np.zeros((len(rows), *self._reading.shape), np.uint8)
        columns: dict[str, list[Any]] = {name: [] for name in ("row", *TOLD)}
        while len(columns["row"]) < len(rows):
            answer = self._pool.take(LOOK_S)
            if answer is not None:
                if answer.clips is not None:
                    clips[len(columns["row"])] = answer.clips
                self._pool.release(answer)
                _tell(columns, answer)
        return {**{name: _column(name, values) for name, values in columns.items()}, "clips": clips}


def _tell(columns: dict[str, list[Any]], answer: Answer) -> None:
    columns["row"].append(answer.row)
    columns["retries"].append(answer.retries)
    for name in ("frames", "duration_s", "decode_s", "error"):
        columns[name].append(getattr(answer.decoded, name))


def _column(name: str, values: list[Any]) -> np.ndarray:
    """Nulls as JAX's and Arrow's common tongue has them: -1, NaN and the empty text."""
    if name == "error":
        return np.array(["" if value is None else value for value in values], object)
    if name in ("duration_s", "decode_s"):
        return np.array([np.nan if value is None else value for value in values], np.float64)
    return np.array([-1 if value is None else value for value in values], np.int64)


class Predict:
    """The model on all devices of a host, loaded and compiled once; batches of clips in, rows out.

    Raises:
        JobError: if the model here is another than the driver's.
    """

    def __init__(self, options: argparse.Namespace, job: Job, answer: "pa.Schema", kind: str):
        # Ray's machines may have been told what the driver needs, or nothing.
        os.environ["JAX_PLATFORMS"] = PLATFORMS[kind]
        from tpu.commands.job_options import load_model, make_predictor
        from videomae_jax.model_digest import model_digest

        checkpoint = load_model(options)
        if model_digest(checkpoint) != job.model:
            model = f"--model {options.model}" if options.model else "the boxed model"
            raise JobError(f"{model} on this machine is another than the driver's")
        self._predictor = make_predictor(options, checkpoint, job)
        self._answer = answer

    def __call__(self, batch: dict[str, np.ndarray]) -> "pa.Table":
        import pyarrow as pa

        good = np.flatnonzero(batch["error"] == "")
        answers: list[dict[str, Any]] = [{} for _ in batch["row"]]
        for place, outputs in zip(good, self._outputs(batch["clips"][good]), strict=True):
            answers[place] = self._predictor.columns(outputs)
        told = {name: pa.array(batch[name]) for name in ("row", *TOLD)}
        table = pa.Table.from_pylist(answers, schema=self._answer)
        for name, column in told.items():
            table = table.append_column(name, column)
        return table

    def _outputs(self, clips: np.ndarray) -> np.ndarray:
        """What the model gives for [rows, V, T, h, w, C]: [rows, V, labels or D]."""
        rows, views = clips.shape[:2]
        flat = clips.reshape(rows * views, *clips.shape[2:])
        size, started = self._predictor.batch, []
        for start in range(0, len(flat), size):
            part = flat[start : start + size]
            padded = np.zeros((size, *part.shape[1:]), np.uint8)
            padded[: len(part)] = part
            started.append((self._predictor.start(padded), len(part)))
        if not started:
            return np.empty((0, views, 0), np.float32)
        outputs = np.concatenate([np.asarray(array)[:length] for array, length in started])
        return outputs.reshape(rows, views, -1)
