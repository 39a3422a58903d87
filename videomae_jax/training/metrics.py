"""What is noted of a run: WORKDIR/metrics.jsonl, a line for each interval and each validation.

    {"step": 40, "epoch": 0.5, "lr": 1e-4, "loss": 0.71, "grad_norm": 1.2, "clips_per_s": 33.1,
     "data_wait": 0.02}
    {"step": 80, "epoch": 1.0, "val_loss": 0.6, "val_top1": 0.5, "val_top5": 0.9, "val_count": 20}

loss and grad_norm are means over the interval's steps, lr is the last one's; clips_per_s and
data_wait (the share of time in which the devices had nothing to do, for want of decoded videos) are
measured since the last pause for a checkpoint, a validation or the compiler. A run that is resumed
goes on after the line of its checkpoint, so that no step is there twice.
"""

import hashlib
import importlib
import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

EVERY_S = 30.0
"""Between two lines for a reader, where there is no terminal to draw a bar on."""

Line = dict[str, Any]


class Metrics:
    """Writes lines to `file` and to other writers, see `tensorboard` and `wandb`.

    resumed: the step of the checkpoint that is gone on from: later lines of the file are dropped.
    """

    def __init__(self, file: Path, *, resumed: int = 0, writers: tuple[Any, ...] = ()):
        if file.exists():
            _drop_after(file, resumed)
        self._file = file.open("a", encoding="utf-8")
        self._writers = writers

    def write(self, line: Mapping[str, Any]) -> None:
        """Note figures of a step; what is not finite is null in the file."""
        plain = {name: _plain(value) for name, value in line.items()}
        self._file.write(json.dumps(plain, allow_nan=False) + "\n")
        self._file.flush()
        for writer in self._writers:
            writer.write(plain)

    def close(self) -> None:
        """No more lines."""
        self._file.close()
        for writer in self._writers:
            writer.close()


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    return value


def _drop_after(file: Path, step: int) -> None:
    """Keep the lines up to a step; a last one that was cut off goes, too."""
    kept = []
    for text in file.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            break
        if line["step"] <= step:
            kept.append(text + "\n")
    partial = file.with_name(f".{file.name}")
    partial.write_text("".join(kept), encoding="utf-8")
    partial.replace(file)


class Interval:
    """Sums up steps, from one line to the next; see the module for what a line says."""

    def __init__(self, *, clips: int, steps_per_epoch: int):
        self._clips, self._steps_per_epoch = clips, steps_per_epoch
        self._begin()

    def _begin(self) -> None:
        self._steps, self._loss, self._norm = 0, 0.0, 0.0
        self.pause()

    def pause(self) -> None:
        """Something else took time: speed and waiting are measured from here on."""
        self._timed, self._waited = 0, 0.0
        self._since = time.perf_counter()

    def add(self, loss: float, grad_norm: float) -> None:
        """A step that is computed."""
        self._steps += 1
        self._timed += 1
        self._loss += loss
        self._norm += grad_norm

    def waited(self, seconds: float) -> None:
        """Time in which no step could be begun for want of a batch."""
        self._waited += seconds

    def line(self, step: int, lr: float) -> Line:
        """The figures of the interval that ends with this step; the next one begins."""
        seconds = max(time.perf_counter() - self._since, 1e-9)
        count = max(self._steps, 1)
        line = {
            "step": step,
            "epoch": step / self._steps_per_epoch,
            "lr": lr,
            "loss": self._loss / count,
            "grad_norm": self._norm / count,
            "clips_per_s": self._timed * self._clips / seconds,
            "data_wait": min(self._waited / seconds, 1.0),
        }
        self._begin()
        return line


class Progress:
    """How far a run is: a bar on a terminal, elsewhere a line now and then.

    stream: a text file, by default stderr.
    """

    def __init__(self, total: int, done: int, *, stream: Any = None):
        self._stream = sys.stderr if stream is None else stream
        self._total, self._told = total, -math.inf
        self._bar: Any = None
        if self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=total,
                initial=done,
                unit="step",
                file=self._stream,
                dynamic_ncols=True,
                smoothing=0.05,
            )

    def step(self) -> None:
        """One more is computed."""
        if self._bar is not None:
            self._bar.update()

    def tell(self, line: Mapping[str, Any], *, always: bool = False) -> None:
        """Show a line of the metrics."""
        shown = {
            name: f"{value:.4g}" if isinstance(value, float) else value
            for name, value in line.items()
            if name != "step"
        }
        if self._bar is not None:
            self._bar.set_postfix(shown)
        elif always or line["step"] == self._total or time.monotonic() - self._told >= EVERY_S:
            self._told = time.monotonic()
            figures = ", ".join(f"{name} {value}" for name, value in shown.items())
            self._stream.write(f"step {line['step']} of {self._total}: {figures}\n")
            self._stream.flush()

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()


class TensorBoard:
    """Figures for TensorBoard, in the folder `tensorboard` of the run.

    Raises:
        ValueError: where tensorboardX is not installed.
    """

    def __init__(self, workdir: Path, *, resumed: int = 0):
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ValueError("--tensorboard needs a package: pip install tensorboardX") from error
        folder = str(workdir / "tensorboard")
        # What an interrupted run wrote after its checkpoint is not shown.
        self._writer = SummaryWriter(folder, purge_step=resumed + 1 if resumed else None)

    def write(self, line: Mapping[str, Any]) -> None:
        """A scalar for each figure."""
        for name, value in line.items():
            if name != "step" and value is not None:
                self._writer.add_scalar(name.replace("val_", "val/"), value, line["step"])
        self._writer.flush()

    def close(self) -> None:
        """No more figures."""
        self._writer.close()


class Wandb:
    """Figures for Weights & Biases; the run has the folder's name, and is gone on with from there.

    Raises:
        ValueError: where wandb is not installed.
    """

    def __init__(self, workdir: Path, config: Mapping[str, Any]):
        try:
            wandb: Any = importlib.import_module("wandb")
        except ImportError as error:
            raise ValueError("--wandb needs a package: pip install wandb") from error
        # Runs in folders of the same name are others.
        place = workdir.absolute()
        name, mark = place.name, hashlib.sha256(str(place).encode()).hexdigest()[:8]
        self._run: Any = wandb.init(
            project="videomae-jax",
            id=f"{name}-{mark}",
            name=name,
            dir=str(workdir),
            resume="allow",
            config=config,
        )

    def write(self, line: Mapping[str, Any]) -> None:
        """The figures of a step."""
        self._run.log({key: line[key] for key in line if key != "step"}, step=line["step"])

    def close(self) -> None:
        """No more figures."""
        self._run.finish()
