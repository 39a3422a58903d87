"""An epoch of training's input, from video files and from what `videomae pack` makes of them.

    python -m benchmarks.pack [--rounds 5] [--json OUT.json]

Generated clips of 320x240 with 75 frames; of each the 16 frames of the Kinetics rule on a canvas of
256x256, in batches of 8, all of them once: from the files, from raw and from JPEG shards, in turns.
A round before the first one brings everything into memory, so no disk is measured.

Neighbours spoil the seconds of the clock, so the ratio that counts is of the processor's: what all
threads of this process used, whoever else was there.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.batch_clips import write_clips

SIZE, FRAMES, BATCH, CANVAS = (320, 240), 75, 8, 256


def measure(folder: Path, *, rounds: int, videos: int) -> dict[str, Any]:
    """Seconds an epoch of every side in every round, of the clock and of the processor.

    Raises:
        RuntimeError: if the batches from the files and from raw shards differ.
    """
    from videomae_jax.training.listing import read_rows
    from videomae_jax.training.pack import pack

    write_clips(folder / "files", count=videos, size=SIZE, frames=FRAMES)
    rows = read_rows(folder / "files")
    packing: dict[str, dict[str, float]] = {}
    size = {"files": sum(Path(path).stat().st_size for path in rows.paths)}
    for encoding in ("raw", "jpeg"):
        clock, processor = time.perf_counter(), time.process_time()
        size[encoding] = pack(rows, folder / encoding, canvas=CANVAS, encoding=encoding).bytes
        packing[encoding] = {
            "clock": time.perf_counter() - clock,
            "processor": time.process_time() - processor,
        }
    sides = ["files", "raw", "jpeg"]
    samples: dict[str, dict[str, list[float]]] = {
        name: {"clock": [], "processor": []} for name in sides
    }
    with machine.Neighbours() as neighbours:
        for number in range(rounds + 1):
            sums = {}
            for name in sides:
                clock, processor = time.perf_counter(), time.process_time()
                sums[name] = epoch(folder / name)
                if number:
                    samples[name]["clock"].append(time.perf_counter() - clock)
                    samples[name]["processor"].append(time.process_time() - processor)
            if sums["files"] != sums["raw"]:
                raise RuntimeError("the batches from raw shards are not those from the files")
            sides.reverse()
    return {
        "videos": videos,
        "bytes": size,
        "packing_seconds": packing,
        "samples": samples,
        "neighbours": neighbours.share,
        **summary(samples, packing),
    }


def epoch(source: Path) -> int:
    """Read all batches of a source; returns a number that says what was in them."""
    from videomae_jax.config import VideoMAEConfig
    from videomae_jax.training.examples import read_examples
    from videomae_jax.training.input import make_input
    from videomae_jax.training.settings import Input

    examples = read_examples(source, kind="none")
    settings = Input(batch_size=BATCH, canvas=CANVAS)
    batches = make_input(examples, settings, VideoMAEConfig(), train=False, seed=0)
    total = sum(int(batch["frames"][:, :, ::16, ::16].sum()) for batch in batches)
    batches.close()
    return total


def summary(
    samples: dict[str, dict[str, list[float]]], packing: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """Medians of each side, how many times less shards take, and when packing has paid off.

    The last in seconds of the processor.
    """
    medians = {
        name: {kind: statistics.median(values) for kind, values in kinds.items()}
        for name, kinds in samples.items()
    }
    files = medians["files"]
    gain = {name: {kind: files[kind] / medians[name][kind] for kind in files} for name in packing}
    pays_after = {
        name: spent["processor"] / (files["processor"] - medians[name]["processor"])
        for name, spent in packing.items()
    }
    return {"seconds_per_epoch": medians, "times_less": gain, "pays_after_epochs": pays_after}


def as_text(found: dict[str, Any]) -> str:
    """A table of the medians, the ratios and the sizes."""
    lines = [
        f"{'':6s} {'s/epoch':>8s} {'CPU s':>7s} {'CPU less':>8s} {'MB':>7s} {'packed in':>12s}"
    ]
    for name, medians in found["seconds_per_epoch"].items():
        line = f"{name:6s} {medians['clock']:8.2f} {medians['processor']:7.2f}"
        less = found["times_less"].get(name)
        line += f" {less['processor']:7.1f}x" if less else f" {'':8s}"
        line += f" {found['bytes'][name] / 1e6:7.1f}"
        if less:
            line += f" {found['packing_seconds'][name]['processor']:6.1f} CPU s"
        lines.append(line)
    share = found["neighbours"]
    others = "unknown" if share is None else f"{share:.0%}"
    after = ", ".join(f"{name} {number:.1f}" for name, number in found["pays_after_epochs"].items())
    lines.append(f"epochs after which packing has paid off: {after}")
    lines.append(f"processor taken by others: {others}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pack", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (5)")
    parser.add_argument("--videos", type=int, default=60, help="how many clips (60)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    options = parser.parse_args(argv)
    description = machine.describe(("av", "grain", "array_record", "pillow", "numpy"))
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), rounds=options.rounds, videos=options.videos)
    print(machine.in_words(description))
    print(as_text(found))
    if options.json:
        text = json.dumps({**description, **found}, indent=2) + "\n"
        options.json.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
