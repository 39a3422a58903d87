"""What every size needs on TPUs, as the TPU compiler models it: nothing is run, nor needs a TPU.

    python -m benchmarks.tpu_modelled [--json benchmarks/results/tpu_modelled.json] [--only small]

A table of `python -m tpu aot`, bfloat16, uint8 clips, for chips of each kind.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import machine
from tpu.aot import AotError, Request, account, prepare

# (size, heads, clips a chip, dtype, topology)
CASES = (
    ("small", 6, 32, "bfloat16", "v5e:1x1"),
    ("small", 16, 32, "bfloat16", "v5e:1x1"),
    ("small", 6, 32, "bfloat16", "v5e:16x16"),
    ("small", 6, 32, "float32", "v5e:1x1"),
    ("base", 12, 32, "bfloat16", "v5e:1x1"),
    ("large", 16, 16, "bfloat16", "v5e:1x1"),
    ("huge", 16, 8, "bfloat16", "v5e:1x1"),
    ("small", 6, 32, "bfloat16", "v6e:1x1"),
    ("small", 16, 32, "bfloat16", "v6e:1x1"),
    ("huge", 16, 8, "bfloat16", "v6e:1x1"),
)
COLUMNS = "| model | heads | dtype | topology | clips a chip | memory a chip | traffic a clip | "
COLUMNS += "arithmetic a clip | roofline a clip | bound by | compiler's estimate |"


def modelled(size: str, heads: int, batch: int, dtype: str, topology: str) -> dict[str, Any]:
    """One case: what was asked, and the account of it, or `error`: why it can't be compiled."""
    from videomae_jax.config import VARIANTS

    config = dataclasses.replace(VARIANTS[size], num_attention_heads=heads, num_labels=400)
    request = Request(topology=topology, config=config, batch=batch, dtype=dtype, clips="uint8")
    asked = {"model": size, "num_heads": heads, "dtype": dtype, "clips": "uint8"}
    asked |= {"topology": topology, "batch": batch}
    try:
        return asked | account(request).to_dict()
    except AotError as error:
        return asked | {"modelled": True, "error": str(error)}


def as_row(case: dict[str, Any]) -> str:
    """One line of the Markdown table."""
    asked = [case[name] for name in ("model", "num_heads", "dtype", "topology", "batch")]
    if "error" in case:
        return f"| {' | '.join(map(str, asked))} | {case['error']} | | | | | |"
    share = case["memory_bytes"] / case["chip"]["memory_bytes"]
    estimate = case["estimated_seconds"]
    cells = (
        *asked,
        f"{case['memory_bytes'] / 1e9:.2f} GB ({share:.0%})",
        f"{case['traffic_bytes'] / 1e9:.3f} GB",
        f"{case['flops'] / 1e9:.0f} GFLOP",
        f"{1e3 * case['roofline_seconds']:.2f} ms",
        case["bound"],
        "none" if estimate is None else f"{1e3 * estimate:.2f} ms",
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tpu_modelled", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--only", metavar="SIZE", help="the cases of one size")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    options = parser.parse_args(argv)
    try:
        # Before the first import of JAX, which reads the environment then.
        prepare()
    except AotError as error:
        parser.error(str(error))
    description = machine.describe(("jax", "flax", "libtpu"))
    print(COLUMNS)
    print("|---" * COLUMNS.count(" | ") + "|---|")
    cases = []
    for case in CASES:
        if options.only in (None, case[0]):
            cases.append(modelled(*case))
            print(as_row(cases[-1]), flush=True)
    if options.json:
        result = {**description, "cases": cases}
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return int(any("error" in case for case in cases))


if __name__ == "__main__":
    sys.exit(main())
