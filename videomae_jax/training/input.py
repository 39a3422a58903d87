"""Examples -> batches, on the host: the clips that `training.clips` makes, in order, by Grain.

Which examples are in a batch, and which of their frames, depends on the seed and on the batch's
number alone: not on workers, threads, or how many processes share the work.
"""

import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np

from videomae_jax.config import VideoMAEConfig
from videomae_jax.decoders import VideoError
from videomae_jax.sampling import SAMPLING
from videomae_jax.training.clips import MOST_BAD, RANDOM, Arrays, Clip, Clips
from videomae_jax.training.examples import Examples
from videomae_jax.training.settings import Input

logger = logging.getLogger(__name__)


def make_input(
    examples: Examples,
    settings: Input,
    config: VideoMAEConfig,
    *,
    train: bool,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    on_bad_video: str = "skip",
    report: Callable[[str], Any] | None = None,
) -> "Batches":
    """An iterator of the batches that one of `process_count` processes has to compute.

    A batch is a dict of the b = batch_size / process_count videos of this process, which are
    b of the batch's videos in a row: batches of all processes, one behind the other, are the batch
    of a single process.

        frames  uint8 [b, T, h, w, 3] on the canvas
        sizes   int32 [b, 2], height and width of the videos before
        labels  int32 [b] or float32 [b, K]; absent where the examples have none
        index   int32 [b], which examples they are; -1 for none
        valid   bool [b], not in training: False for what only fills a batch up

    In training the batches never end, each epoch in another order, the last batch of one filled
    up from the next. Otherwise all examples come once, in order, by the rule of sampling that the
    setting's is the random form of.

    A bad video is reported once, by `report(line)` with its path and the reason (by default a
    warning is logged). With on_bad_video "skip" training takes the next example in its place, and
    evaluation goes on with `valid` False there.

    Raises:
        ValueError: for settings that can't be; and, from the iterator, VideoError (one, too) for a
            bad video with "stop", and where 100 videos one after the other are bad.
    """
    _check(settings, config, process_index, process_count, on_bad_video)
    clips = Clips(
        examples,
        settings,
        config,
        train=train,
        seed=seed,
        share=(process_index, process_count),
        patience=1 if on_bad_video == "stop" else min(len(examples), MOST_BAD),
    )
    return Batches(clips, settings.workers, on_bad_video, report or logger.warning)


def steps_per_epoch(examples: Examples, settings: Input) -> int:
    """Whole batches in an epoch of training, at least one."""
    return max(len(examples) // settings.batch_size, 1)


# What has threads that nobody ended. Grain's iterators end theirs when they become garbage, at any
# moment, and wait for them: for good, where one waits to hand over what nobody takes.
_OPEN: set[grain.DatasetIterator] = set()


class Batches(grain.DatasetIterator):
    """What `make_input` returns; its state is the number of the next batch.

    So a state that was saved holds for any number of workers and of processes. It is what Orbax
    saves of it and restores; decoding begins with the first batch that is asked for.
    """

    def __init__(
        self,
        clips: Clips,
        workers: int,
        on_bad_video: str,
        report: Callable[[str], Any],
    ):
        super().__init__()
        self._clips, self._workers = clips, workers
        self._stop_at_bad, self._report = on_bad_video == "stop", report
        self._reported: set[int] = set()
        self._next_batch = 0
        self._source: grain.DatasetIterator | None = None

    def __next__(self) -> Arrays:
        self._assert_not_closed()
        arrays, bad = next(self._started())
        for index, reason in bad:
            if self._stop_at_bad:
                raise VideoError(reason)
            if index not in self._reported:
                self._reported.add(index)
                self._report(reason)
        if self._clips.train and not arrays.pop("valid").all():
            raise VideoError(
                f"{self._clips.patience} videos after each other can't be used, the last of them "
                f"{bad[-1][1]}"
            )
        self._next_batch += 1
        return arrays

    def get_state(self) -> dict[str, int]:
        """The number of the next batch, as plain JSON."""
        return {"next_batch": self._next_batch}

    def set_state(self, state: dict[str, int]) -> None:
        """Go on with the batch that a state says."""
        self._let_go()
        self._next_batch = state["next_batch"]

    def start_prefetch(self) -> None:
        """Begin to decode."""
        self._started().start_prefetch()

    def close(self) -> None:
        """End its threads and processes; no batch can be asked for after that."""
        self._let_go()
        super().close()

    def __del__(self) -> None:
        """Nothing: see `_OPEN`."""

    def _started(self) -> grain.DatasetIterator:
        if self._source is None:
            self._source = iter(self._dataset())
            _OPEN.add(self._source)
        return self._source

    def _let_go(self) -> None:
        if self._source is not None:
            self._source.close()
            _OPEN.discard(self._source)
            self._source = None

    def _dataset(self) -> grain.IterDataset:
        """The batches from the next on; besides the one it is at, it holds about two."""
        batch = self._clips.batch
        rest = grain.MapDataset.source(self._clips).slice(slice(self._next_batch * batch, None))
        if self._workers:
            _parse_no_flags()
            # A thread in each: two would only wait for each other.
            clips = rest.to_iter_dataset(grain.ReadOptions(1, 1)).mp_prefetch(
                grain.MultiprocessingOptions(self._workers, -(-batch // self._workers)),
                worker_init_fn=_end_with_parent,
            )
        else:
            threads = min(os.cpu_count() or 1, 16)
            clips = rest.to_iter_dataset(grain.ReadOptions(threads, max(threads, batch)))
        whole = clips.batch(batch, batch_fn=_stacked)
        return grain.experimental.ThreadPrefetchIterDataset(whole, prefetch_buffer_size=1)


def _stacked(clips: Sequence[Clip]) -> tuple[Arrays, list[tuple[int, str]]]:
    """One batch of clips, and all that is wrong with any."""
    names = clips[0][0]
    arrays = {name: np.stack([clip[name] for clip, _ in clips]) for name in names}
    return arrays, [each for _, bad in clips for each in bad]


def _end_with_parent(worker: int, workers: int) -> None:
    """In a worker: end when the process that started it is gone, even if that was killed.

    It would wait for good for somebody to take its clips, and keep their memory.
    """
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _parse_no_flags() -> None:
    """Grain's workers are told its flags, which are read from no command line here."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _check(
    settings: Input, config: VideoMAEConfig, index: int, count: int, on_bad_video: str
) -> None:
    if on_bad_video not in ("skip", "stop"):
        raise ValueError(f"on_bad_video must be skip or stop, got {on_bad_video!r}")
    if not 0 <= index < count:
        raise ValueError(f"process_index must be 0 to {count - 1}, got {index}")
    if settings.batch_size % count:
        raise ValueError(
            f"input.batch_size must be a multiple of the {count} processes, got "
            f"{settings.batch_size}"
        )
    if config.num_channels != 3:
        raise ValueError(f"videos have 3 colours, the model takes {config.num_channels}")
    rules = [*RANDOM, *SAMPLING]
    if settings.sampling not in rules:
        raise ValueError(f"no sampling rule {settings.sampling!r}; one of: {', '.join(rules)}")
