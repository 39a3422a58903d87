"""The batch job against a plain loop of PyAV, transformers' processor and its model.

    python -m benchmarks.batch [--rounds 3] [--json OUT.json]

Two questions, of generated clips of 480x270 with 300 frames, in processes of their own, in turns:

small   videos/s of `python -m tpu run`, in its default dtype, against the loop; the share of the
        time that the device waited.
tiny    videos/s with a model that costs next to nothing, against the pure rate of decoding: as many
        processes as cores that read and resize the same clips, and do nothing else.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.batch_clips import write_clips
from benchmarks.batch_sides import decode_only, ours, plain_loop, write_models


def measure(folder: Path, *, rounds: int, videos: int, decodes: int) -> dict[str, Any]:
    """Videos/s of every side in every round, and what else they say; the first round is left out.

    Raises:
        RuntimeError: if a process fails, or the sides don't say the same of a clip.
    """
    clips = write_clips(folder / "clips", count=12)
    models = write_models(folder)
    sides: dict[str, list[dict[str, Any]]] = {
        "plain loop": [],
        "ours, small": [],
        "decoding alone": [],
        "ours, tiny": [],
    }
    with machine.Neighbours() as neighbours:
        for number in range(rounds + 1):
            # A short one first: files into memory, programs into the cache.
            small, tiny = (videos, decodes) if number else (len(clips), len(clips))
            out = folder / f"out-{number}"
            found = {
                "plain loop": plain_loop(clips, models.transformers, small),
                "ours, small": ours(clips, models.small, small, out.with_suffix(".small")),
                "decoding alone": decode_only(clips, models.tiny, tiny),
                "ours, tiny": ours(clips, models.tiny, tiny, out.with_suffix(".tiny"), batch=16),
            }
            agree(found["plain loop"]["labels"], found["ours, small"]["labels"])
            if number:
                for name, figures in found.items():
                    figures.pop("labels", None)
                    sides[name].append(figures)
    return {"sides": sides, "neighbours": neighbours.share, **summary(sides)}


def agree(theirs: list[list[str]], ours: list[list[str]]) -> None:
    """Our best class must be among their five best, of every clip.

    Raises:
        RuntimeError: naming the clip.
    """
    for number, (wanted, given) in enumerate(zip(theirs, ours, strict=True)):
        if given[0] not in wanted:
            raise RuntimeError(f"clip {number}: ours says {given[0]}, theirs {wanted}")


def summary(sides: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians, and the two ratios that count."""
    rates = {
        name: statistics.median(each["videos_per_s"] for each in figures)
        for name, figures in sides.items()
    }
    waited = statistics.median(each["device_waited"] for each in sides["ours, small"])
    return {
        "videos_per_s": rates,
        "ours_over_plain_loop": rates["ours, small"] / rates["plain loop"],
        "device_busy": 1 - waited,
        "ours_over_decoding_alone": rates["ours, tiny"] / rates["decoding alone"],
    }


def as_text(found: dict[str, Any]) -> str:
    """A table of the medians and the ratios."""
    rates = [f"{name:16s} {rate:8.2f} videos/s" for name, rate in found["videos_per_s"].items()]
    share = found["neighbours"]
    others = "unknown" if share is None else f"{share:.0%}"
    return "\n".join(
        [
            *rates,
            f"small: {found['ours_over_plain_loop']:.2f} times the plain loop, "
            f"device busy {found['device_busy']:.1%}",
            f"tiny: {found['ours_over_decoding_alone']:.2f} of decoding alone",
            f"processor taken by others, our own processes included: {others}",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.batch", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds that count (3)")
    parser.add_argument("--videos", type=int, default=48, help="videos of the small model (48)")
    parser.add_argument("--decodes", type=int, default=1200, help="of the tiny one (1200)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    options = parser.parse_args(argv)
    description = machine.describe(("jax", "flax", "torch", "transformers", "av", "pyarrow"))
    with tempfile.TemporaryDirectory() as folder:
        found = measure(
            Path(folder), rounds=options.rounds, videos=options.videos, decodes=options.decodes
        )
    print(machine.in_words(description))
    print(as_text(found))
    if options.json:
        text = json.dumps({**description, **found}, indent=2) + "\n"
        options.json.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
