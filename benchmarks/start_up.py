"""How long does starting take? Medians of fresh processes, run in turns.

    python -m benchmarks.start_up [--runs 9] [--json OUT.json]

`import videomae_jax` with every public name in use against `import jax, flax.linen` alone, and
`videomae --help`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import machine

FRAMEWORK = "import jax, flax.linen"
PACKAGE = "import videomae_jax as vm; [getattr(vm, name) for name in vm.__all__]"
COMMANDS = {
    "python": ["-c", "pass"],
    "framework": ["-c", FRAMEWORK],
    "package": ["-c", f"{FRAMEWORK}; {PACKAGE}"],
    "help": ["-m", "videomae_jax", "--help"],
}


def measure(*, runs: int) -> dict[str, list[float]]:
    """Seconds of every run of every command; a first round, which writes bytecode, is left out."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for round_number in range(runs + 1):
        for name, arguments in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            if round_number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def summary(seconds: dict[str, list[float]], description: dict[str, Any]) -> dict[str, Any]:
    """What was measured and on what, ready for JSON."""
    pairs = zip(seconds["framework"], seconds["package"], strict=True)
    return {
        **description,
        "seconds": seconds,
        # Of neighbours in time, so that a machine that slows down half-way cancels out.
        "median_seconds_added_by_package": statistics.median(
            after - before for before, after in pairs
        ),
    }


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.start_up", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--runs", type=int, default=9, help="runs of each command (9)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    options = parser.parse_args(argv)
    description = machine.describe(("jax", "flax"))
    figures = summary(measure(runs=options.runs), description)
    print("  best  median")
    for name, values in figures["seconds"].items():
        command = " ".join(["python", *COMMANDS[name]])
        print(f"{min(values):6.2f}  {statistics.median(values):6.2f}  {command}")
    print(f"        {figures['median_seconds_added_by_package']:6.2f}  added by the package")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
