"""How much memory and time does a conversion take? Each in a fresh process.

    python -m benchmarks.convert_memory small base [--formats safetensors bin pth] [--turns 5]
                                       [--json OUT.json]

Peak resident memory stands against the bound, 2.2 times the weights plus 400 MB; seconds against a
plain copy with fsync of the same file, both in turns, medians. Exit code 1 if a peak is above the
bound. Files are made in TMPDIR, which should be on a disk.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import machine

VARIANTS = ("small", "base", "large", "huge")
FORMATS = ("safetensors", "bin", "pth")
MEGABYTE = 1e6
# Linux counts in kibibytes, macOS in bytes.
UNIT = 1 if sys.platform == "darwin" else 1024


def bound(weight_bytes: int) -> float:
    """The most memory that a conversion may take, in bytes."""
    return 2.2 * weight_bytes + 400 * MEGABYTE


def measure(variant: str, format: str, folder: Path, turns: int) -> dict[str, Any]:
    """Make a checkpoint in `folder`, copy and convert it in turns, and remove all of it."""
    source, out = folder / "source", folder / "out"
    made = subprocess.run(
        [sys.executable, "-m", "benchmarks.checkpoints", variant, source, "--format", format],
        check=True,
        capture_output=True,
        text=True,
    )
    given = Path(made.stdout.strip())
    (weights,) = (path for path in source.iterdir() if path.suffix != ".json")
    copies, conversions, peaks = [], [], []
    for _ in range(turns):
        copies.append(time_copy(weights, folder / "copy"))
        start = time.perf_counter()
        peaks.append(peak_memory([sys.executable, "-m", "convert", str(given), str(out)]))
        conversions.append(time.perf_counter() - start)
        shutil.rmtree(out)
    size = weights.stat().st_size
    shutil.rmtree(source)
    return {
        "variant": variant,
        "format": format,
        "weight_bytes": size,
        "peak_bytes": max(peaks),
        "bound_bytes": round(bound(size)),
        "seconds": statistics.median(conversions),
        "copy_seconds": statistics.median(copies),
        "every_seconds": conversions,
        "every_copy_seconds": copies,
    }


def peak_memory(command: list[str]) -> int:
    """Peak resident memory of a command, in bytes.

    The kernel counts what the parent held when it started the command, too: call it from a process
    that is small.
    """
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return usage.ru_maxrss * UNIT


def time_copy(source: Path, copy: Path) -> float:
    """Seconds of a plain copy with fsync, which is then removed."""
    start = time.perf_counter()
    with source.open("rb") as read, copy.open("wb") as write:
        shutil.copyfileobj(read, write, 1 << 24)
        write.flush()
        os.fsync(write.fileno())
    seconds = time.perf_counter() - start
    copy.unlink()
    return seconds


def as_text(figures: list[dict[str, Any]]) -> str:
    """The figures as a table for a terminal."""
    lines = ["variant  format       weights    peak   bound MB   convert    copy s   ratio"]
    for row in figures:
        megabytes = [row[f"{name}_bytes"] / MEGABYTE for name in ("weight", "peak", "bound")]
        lines.append(
            f"{row['variant']:<8} {row['format']:<11} "
            + " ".join(f"{value:7.0f}" for value in megabytes)
            + f"    {row['seconds']:8.1f} {row['copy_seconds']:7.1f}"
            + f" {row['seconds'] / row['copy_seconds']:7.1f}"
            + ("   ABOVE THE BOUND" if row["peak_bytes"] > row["bound_bytes"] else "")
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.convert_memory", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=", ".join(VARIANTS))
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--turns", type=int, default=1, metavar="N", help="(default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    options = parser.parse_args(argv)
    if unknown := set(options.variants) - set(VARIANTS):
        parser.error(f"unknown variant {', '.join(unknown)}; one of: {', '.join(VARIANTS)}")
    description = machine.describe(("jax", "numpy", "orbax-checkpoint", "safetensors"))
    figures = []
    with tempfile.TemporaryDirectory(prefix="convert_memory_") as folder:
        for variant in options.variants or ("small",):
            for format in options.formats:
                figures.append(measure(variant, format, Path(folder), options.turns))
    print(as_text(figures))
    if options.json:
        content = {
            **description,
            "conversions": figures,
        }
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return int(any(row["peak_bytes"] > row["bound_bytes"] for row in figures))


if __name__ == "__main__":
    sys.exit(main())
