"""A run, from the first step or from its last checkpoint to the model.

Steps are begun ahead of the device and looked at when they are done, so that the device never
waits for the host. What a run computes depends on its recipe and data alone: not on how often it
was interrupted.
"""

import collections
import contextlib
import dataclasses
import io
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from videomae_jax.training.checkpoints import Checkpoints
from videomae_jax.training.devices import Devices
from videomae_jax.training.metrics import Interval, Metrics, Progress

AHEAD = 2
"""Steps that are begun before one is looked at."""


class Stopped(Exception):
    """The run was asked to end; a checkpoint is written, and it can be gone on with."""


class NotFinite(ValueError):
    """A loss or gradient that is no number; `paths` are the videos that this process had in it."""

    def __init__(self, step: int, what: str, paths: list[str]):
        self.step, self.paths = step, paths
        super().__init__(
            f"step {step} has a {what}; what came before it is kept, its videos were: "
            f"{', '.join(paths)}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """When what is done, in steps.

    total: of the run. checkpoint, validate, log: from one to the next; validate 0 is never.
    """

    total: int
    steps_per_epoch: int
    checkpoint: int
    validate: int
    log: int


@dataclasses.dataclass(kw_only=True)
class Parts:
    """All that the loop works with.

    step: (state, batch, flag) -> (state, metrics), see `Devices.compile_step`.
    batches: the iterator of this process's share, as `make_input` gives it.
    paths: of the examples, which "index" in a batch counts.
    clips: that a step of all processes computes.
    validate: state -> (figures, score), where there is something to validate on.
    """

    step: Callable[..., Any]
    batches: Any
    devices: Devices
    checkpoints: Checkpoints
    paths: list[str]
    clips: int
    validate: Callable[[Any], tuple[dict[str, float], float]] | None = None
    metrics: Metrics | None = None
    stop: threading.Event = dataclasses.field(default_factory=threading.Event)


@dataclasses.dataclass(frozen=True)
class Begun:
    """A step that the device may still be at: its number, its metrics, which examples it sees."""

    number: int
    # JAX arrays, which JAX's own type knows only half of.
    metrics: dict[str, Any]
    index: np.ndarray


class Loop:
    """Steps one after the other, from a state at `done` steps.

    After `run`, `state` is the last one's.
    """

    def __init__(self, parts: Parts, plan: Plan, state: Any, *, done: int):
        self._parts, self.plan, self.state, self._done = parts, plan, state, done
        self._begun: collections.deque[Begun] = collections.deque()
        self._interval = Interval(clips=parts.clips, steps_per_epoch=plan.steps_per_epoch)
        self._first, self._kept, self._stop = done + 1, done, False

    def run(self) -> None:
        """Train to the end.

        Raises:
            Stopped: after a step at which this or another process was asked to.
            NotFinite: after a step whose loss or gradient isn't; nothing of it is kept.
        """
        with self._shown():
            while self._done < self.plan.total:
                self._begin()
                self._finish(AHEAD)
                if self._due(self.plan.validate) or self._due(self.plan.checkpoint):
                    self._keep()
                if self._stop:
                    self._keep()
                    raise Stopped
            self._keep()

    def _due(self, every: int) -> bool:
        return bool(every) and (self._done % every == 0 or self._done == self.plan.total)

    def _begin(self) -> None:
        """Give the device the next step to do."""
        parts, before = self._parts, time.perf_counter()
        batch = next(parts.batches)
        if all(begun.metrics["loss"].is_ready() for begun in self._begun):
            # The device has nothing to do.
            self._interval.waited(time.perf_counter() - before)
        flag = parts.devices.flag(parts.stop.is_set())
        self.state, metrics = parts.step(self.state, parts.devices.put(batch), flag)
        self._done += 1
        self._begun.append(Begun(self._done, metrics, batch["index"]))
        if self._done == self._first:
            # Which has waited for the compiler.
            self._finish(0)
            self._interval.pause()

    def _finish(self, ahead: int) -> None:
        """Look at steps until no more than `ahead` are left to the device."""
        while len(self._begun) > ahead:
            begun = self._begun.popleft()
            figures = {name: float(begun.metrics[name]) for name in ("loss", "grad_norm", "lr")}
            for name in ("loss", "grad_norm"):
                if not math.isfinite(figures[name]):
                    paths = [self._parts.paths[index] for index in np.unique(begun.index)]
                    raise NotFinite(begun.number, f"{name} of {figures[name]}", paths)
            self._stop |= bool(begun.metrics["stop"])
            self._progress.step()
            self._interval.add(figures["loss"], figures["grad_norm"])
            if begun.number % self.plan.log == 0 or begun.number == self.plan.total:
                self._note(self._interval.line(begun.number, figures["lr"]))

    def _keep(self) -> None:
        """Validate where it is time, and write a checkpoint of the steps begun."""
        self._finish(0)
        if self._kept == self._done:
            return
        score = None
        if self._parts.validate is not None and self._due(self.plan.validate):
            figures, score = self._parts.validate(self.state)
            epoch = self._done / self.plan.steps_per_epoch
            self._note({"step": self._done, "epoch": epoch, **figures}, always=True)
        position = self._parts.batches.get_state()
        self._parts.checkpoints.save(self._done, self.state, position, score=score)
        self._kept = self._done
        self._interval.pause()

    def _note(self, line: dict[str, Any], *, always: bool = False) -> None:
        if self._parts.metrics is not None:
            self._parts.metrics.write(line)
        self._progress.tell(line, always=always)

    @contextlib.contextmanager
    def _shown(self) -> Iterator[None]:
        # One process speaks for all.
        stream = io.StringIO() if self._parts.metrics is None else None
        self._progress = Progress(self.plan.total, self._done, stream=stream)
        try:
            yield
        finally:
            self._progress.close()
