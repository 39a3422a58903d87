"""How fast is the forward pass? Ours against transformers, same weights and clips, in turns.

    python -m benchmarks.forward [--models small base] [--heads 6 16] [--dtypes float32 bfloat16]
                                 [--batches 1 4 16] [--opponents eager compile] [--pairs 8]
                                 [--same-dtype] [--json OUT.json] [--quick]

Runs on whatever device jax and torch see. Theirs is VideoMAEForVideoClassification with sdpa, eager
and under `torch.compile` (on a GPU with max-autotune). Clips are on the device before the clock
starts; each library has the threads that it takes by itself. Exit code 1 if logits disagree with
transformers' in float32.
"""

import argparse
import itertools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import machine, sides
from benchmarks.forward_cases import (
    MODELS,
    PRECISIONS,
    WAYS,
    Case,
    best_batches,
    disagreements,
    measure,
)
from benchmarks.forward_text import as_text
from videomae_jax.config import VARIANTS

PACKAGES = """
    jax jaxlib jax-cuda12-plugin jax-cuda13-plugin flax numpy torch transformers triton
    nvidia-cudnn-cu12 nvidia-cudnn-cu13
""".split()

CPU_BATCHES = (1, 4, 16)
ACCELERATOR_BATCHES = (*CPU_BATCHES, 32, 64, 128, 256)


def cases_of(options: argparse.Namespace) -> Iterator[Case]:
    """Every case that is asked for, those of one network next to each other."""
    batches = options.batches or (CPU_BATCHES if sides.on_cpu() else ACCELERATOR_BATCHES)
    for model in options.models:
        heads = options.heads if model == "small" else (MODELS[model].num_attention_heads,)
        for number in heads:
            for batch in batches:
                yield Case(
                    model,
                    number,
                    batch,
                    tuple(options.dtypes),
                    tuple(options.opponents),
                    options.same_dtype,
                )


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure every case, write them to `options.json` as they come, and return all of it."""
    cases = list(cases_of(options))
    with sides.no_compilation_cache():
        peaks = {dtype: sides.matmul_peak(dtype) for dtype in PRECISIONS}
        content = machine.describe(PACKAGES, accelerators=sides.accelerators()) | {
            "threads": sides.threads(),
            "pairs": options.pairs,
            "matmul_peak_flops_per_second": peaks,
            "cases": [],
        }
        steps = sum(len(case.sides()) + options.pairs for case in cases)
        with tqdm(total=steps, unit="step", disable=None, file=sys.stderr) as bar:

            def step(text: str) -> None:
                bar.set_description(text, refresh=False)
                bar.update()

            for config, group in itertools.groupby(cases, key=lambda case: case.config):
                with sides.network(config) as net:
                    for case in group:
                        found = measure(case, net, peaks, pairs=options.pairs, step=step)
                        sides.free_memory()
                        content["cases"].append(found)
                        conclude(content, options.json)
    return content


def conclude(content: dict[str, Any], file: Path | None) -> None:
    """Add what follows from the cases so far, and write all of it to `file`."""
    content["best"] = best_batches(content["cases"])
    content["disagreements"] = disagreements(content["cases"])
    if file:
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options, with the defaults of a quick run filled in."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.forward", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["small", "base"])
    parser.add_argument(
        "--heads", nargs="+", type=int, default=[6, 16], help="of the small model (6 16)"
    )
    parser.add_argument("--dtypes", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument(
        "--batches", nargs="+", type=int, metavar="N", help="(1 4 16; elsewhere than on CPU to 256)"
    )
    parser.add_argument("--opponents", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument(
        "--same-dtype", action="store_true", help="theirs only in the dtypes of ours"
    )
    parser.add_argument("--pairs", type=int, default=8, metavar="N", help="samples a side (8)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a tiny network, 2 pairs, eager only: shows that it runs; the figures mean nothing",
    )
    options = parser.parse_args(argv)
    if options.quick:
        options.models, options.batches, options.opponents = ["tiny"], [2], ["eager"]
        options.pairs = 2
    if min(*(options.batches or ()), options.pairs, 1) < 1:
        parser.error("--batches and --pairs must be at least 1")
    width = VARIANTS["small"].hidden_size
    if "small" in options.models and any(h < 1 or width % h for h in options.heads):
        parser.error(f"--heads must divide the width of the small model, {width}")
    return options


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    options = parse(argv)
    # Both libraries must fit on one GPU; read when jax first looks for devices.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        mend = "pip install 'videomae-jax[verify]'"
        print(f"forward: error: it needs {error.name}; {mend}", file=sys.stderr)
        return 2
    content = run(options)
    print(as_text(content))
    return int(bool(content["disagreements"]))


if __name__ == "__main__":
    sys.exit(main())
