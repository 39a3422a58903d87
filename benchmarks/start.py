"""From the start of a process to a first label: time and peak memory, against transformers.

    python -m benchmarks.start [--runs 7] [--json OUT.json]

`videomae classify` with a compilation cache that is empty (cold) and one that is not (warm), and
the script below, which is what transformers' documentation does, in turns: fresh processes, one
untrained checkpoint of the published size in both layouts, one clip, and the same label (checked).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import machine

# A whole program, as a user has it. Frames by PyAV, as ours; the processor that needs no
# torchvision.
THEIRS = """
import sys
import av, numpy as np, torch
from transformers import VideoMAEForVideoClassification, VideoMAEImageProcessorPil

path, folder = sys.argv[1:]
device = "cuda" if torch.cuda.is_available() else "cpu"
processor = VideoMAEImageProcessorPil.from_pretrained(folder)
model = VideoMAEForVideoClassification.from_pretrained(folder).eval().to(device)
with av.open(path) as container:
    container.streams.video[0].thread_type = "AUTO"
    frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
chosen = np.linspace(0, len(frames) - 1, model.config.num_frames).astype(int)
inputs = processor([frames[index] for index in chosen], return_tensors="pt").to(device)
with torch.inference_mode():
    logits = model(**inputs).logits
print(model.config.id2label[logits[0].argmax().item()])
"""


def run(command: list[str], cache: Path) -> tuple[float, float, str]:
    """(seconds, peak MB, the first label) of one process that keeps what it compiles in `cache`."""
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    # It would take the place of that folder, and be warm.
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen([sys.executable, *command], stdout=output, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{command[0]} ended with {process.returncode}")
        output.seek(0)
        text = output.read()
    # macOS counts bytes, Linux KiB.
    unit = 1 if sys.platform == "darwin" else 1024
    return seconds, usage.ru_maxrss * unit / 1e6, text


def ours_label(text: str) -> str:
    """The label in the one line of JSON that our command prints."""
    return json.loads(text)["predictions"][0]["label"]


def measure(folder: Path, *, runs: int) -> dict[str, dict[str, list[float]]]:
    """Seconds and peak MB of every run of every side; a first round is left out.

    Raises:
        RuntimeError: if a process fails, or two of them print different labels.
    """
    source, converted, video = folder / "hf", folder / "converted", folder / "clip.mp4"
    # In processes of their own: the peak of a child begins with what its parent holds.
    for module, *arguments in (
        ("examples.quickstart.checkpoint", source),
        ("examples.quickstart.clip", video),
        ("convert", source, converted),
    ):
        command = [sys.executable, "-m", module, *map(str, arguments)]
        subprocess.run(command, check=True, capture_output=True)
    command = ["-m", "videomae_jax", "classify", str(video), "--model", str(converted), "--json"]
    theirs = ["-c", THEIRS, str(video), str(source)]
    sides: dict[str, tuple[list[str], Callable[[int], Path], Callable[[str], str]]] = {
        "ours, cold": (command, lambda number: folder / f"cold-{number}", ours_label),
        "ours, warm": (command, lambda _: folder / "warm", ours_label),
        "transformers": (theirs, lambda _: folder / "warm", str.strip),
    }
    figures: dict[str, dict[str, list[float]]] = {
        name: {"seconds": [], "megabytes": []} for name in sides
    }
    labels = set()
    for number in range(runs + 1):
        for name, (arguments, cache, label) in sides.items():
            seconds, megabytes, text = run(arguments, cache(number))
            labels.add(label(text))
            if number:
                figures[name]["seconds"].append(seconds)
                figures[name]["megabytes"].append(megabytes)
    if len(labels) != 1:
        raise RuntimeError(f"the sides do not agree: {sorted(labels)}")
    return figures


def summary(figures: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """Medians of each side, and the ratio of ours to transformers'."""
    medians = {
        name: {unit: statistics.median(values) for unit, values in units.items()}
        for name, units in figures.items()
    }
    theirs = medians["transformers"]
    ratios = {
        name: {unit: value / theirs[unit] for unit, value in units.items()}
        for name, units in medians.items()
    }
    return {"medians": medians, "ratios": ratios, "samples": figures}


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.start", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--runs", type=int, default=7, help="runs of each side (7)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    options = parser.parse_args(argv)
    description = machine.describe(("jax", "flax", "torch", "transformers", "av"))
    with tempfile.TemporaryDirectory() as folder:
        found = summary(measure(Path(folder), runs=options.runs))
    print(machine.in_words(description))
    print(f"{'':14s} {'seconds':>8s} {'ratio':>6s} {'peak MB':>8s} {'ratio':>6s}")
    for name, medians in found["medians"].items():
        ratios = found["ratios"][name]
        print(
            f"{name:14s} {medians['seconds']:8.2f} {ratios['seconds']:6.2f} "
            f"{medians['megabytes']:8.0f} {ratios['megabytes']:6.2f}"
        )
    if options.json:
        result = {**description, "model": "small", **found}
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
