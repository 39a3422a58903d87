"""How fast is a step of training? Ours against transformers and torch, same weights, in turns.

    python -m benchmarks.train [--model small] [--tasks finetune pretrain] [--batch 2] [--pairs 6]
                               [--dtypes float32 bfloat16] [--cores N] [--json OUT.json] [--quick]

A step is forward, backward and AdamW, of clips that are there: no decoding, no augmentation. Theirs
is VideoMAEForVideoClassification or VideoMAEForPreTraining with sdpa in float32, and torch's fused
AdamW. Peak memory is of a process for each side, from its start. Exit code 1 if loss or gradient of
the first step disagree.

Seconds are of the clock and of the processor. Neighbours spoil the first, and torch's threads,
which wait for each other in loops, the second: `--cores 1` leaves one thread to each side.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import machine

TASKS = ("finetune", "pretrain")
# Most relative L2 error of the gradient, and relative error of the loss, against theirs.
LIMITS = {"float32": (1e-4, 1e-5), "bfloat16": (5e-2, 1e-2)}
STEPS_FOR_MEMORY = 3
INPUTS = "inputs.npz"
THEIRS = "torch float32"


def sides_of(options: argparse.Namespace) -> list[str]:
    """Names of the sides."""
    return [THEIRS, *(f"ours {dtype}" for dtype in options.dtypes)]


def prepare(
    options: argparse.Namespace, name: str, side: str, source: Path, *, gradient: bool
) -> Any:
    """A side of a task, by its name; `source` holds the weights and what it is given."""
    import numpy as np

    inputs = dict(np.load(source / INPUTS))
    if side == THEIRS:
        from benchmarks.train_theirs import prepare_theirs

        return prepare_theirs(name, source, inputs, gradient=gradient)
    from benchmarks.train_ours import prepare_ours

    return prepare_ours(
        task_of(options, name),
        source,
        inputs,
        side.removeprefix("ours "),
        gradient=gradient,
        remat=options.remat,
    )


def measure(options: argparse.Namespace, name: str, folder: Path) -> dict[str, Any]:
    """One task: memory of each side, agreement, then seconds in turns."""
    import numpy as np

    from benchmarks.checkpoints import write_checkpoint
    from benchmarks.train_ours import ARCHITECTURES

    task = task_of(options, name)
    source = write_checkpoint(folder / name, task.config, ARCHITECTURES[name], "safetensors")
    np.savez(source / INPUTS, **task.inputs())
    memory = {side: peak_of(options, name, side, source) for side in sides_of(options)}
    prepared = {
        side: prepare(options, name, side, source, gradient=True) for side in sides_of(options)
    }
    with machine.Neighbours() as neighbours:
        samples = in_turns({side: each.side for side, each in prepared.items()}, options.pairs)
    sides = {
        side: {
            **samples[side],
            **{
                f"median_{kind}": statistics.median(values)
                for kind, values in samples[side].items()
            },
            "peak_bytes": memory[side],
            **agreement(task, side, each, prepared[THEIRS]),
        }
        for side, each in prepared.items()
    }
    return {
        "task": name,
        "batch": task.batch,
        "share_of_cores_used_by_others": neighbours.share,
        "sides": sides,
        "ratios": ratios(sides),
    }


def task_of(options: argparse.Namespace, name: str) -> Any:
    """The task of a name, with the network that is asked for."""
    from benchmarks.forward_cases import MODELS
    from benchmarks.train_ours import Task

    return Task(name, MODELS[options.model], options.batch)


def in_turns(sides: dict[str, Any], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds a step, of the clock and of all threads; the order is reversed after each round."""
    samples: dict[str, dict[str, list[float]]] = {
        name: {"seconds": [], "processor_seconds": []} for name in sides
    }
    order = list(sides)
    for _ in range(rounds):
        for name in order:
            # Threads that wait in a loop let go of the core meanwhile.
            time.sleep(0.3)
            processor, clock = time.process_time(), time.perf_counter()
            sides[name].wait(sides[name].call())
            samples[name]["seconds"].append(time.perf_counter() - clock)
            samples[name]["processor_seconds"].append(time.process_time() - processor)
        order.reverse()
    return samples


def agreement(task: Any, side: str, given: Any, wanted: Any) -> dict[str, Any]:
    """Loss and gradient of the first step against theirs."""
    import numpy as np

    from benchmarks.train_ours import in_our_order

    if side == THEIRS:
        return {"loss": given.loss}
    of_gradient, of_loss = LIMITS[side.removeprefix("ours ")]
    theirs = in_our_order(task, wanted.gradient)
    distance = float(np.linalg.norm(given.gradient - theirs) / np.linalg.norm(theirs))
    agrees = distance <= of_gradient and abs(given.loss / wanted.loss - 1) <= of_loss
    return {"loss": given.loss, "gradient_relative_l2": distance, "agrees": bool(agrees)}


def ratios(sides: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Ours over theirs: the median of each round's, so that a slow moment is in both."""
    theirs = sides[THEIRS]
    return {
        side: {
            **{
                kind: statistics.median(
                    ours / other for ours, other in zip(each[kind], theirs[kind], strict=True)
                )
                for kind in ("seconds", "processor_seconds")
            },
            "peak_bytes": each["peak_bytes"] / theirs["peak_bytes"],
        }
        for side, each in sides.items()
        if side != THEIRS
    }


def peak_of(options: argparse.Namespace, name: str, side: str, source: Path) -> int:
    """Peak bytes of a process that does nothing but a few steps of one side."""
    command = ["-m", "benchmarks.train", "--memory-of", side, str(source), "--tasks", name]
    command += ["--model", options.model, "--batch", str(options.batch)]
    command += ["--remat"] if options.remat else []
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{side} ended with {done.returncode}: {done.stderr[-500:]}")
    return int(done.stdout.splitlines()[-1])


def memory_of(options: argparse.Namespace) -> int:
    """The process of `peak_of`."""
    from benchmarks.train_theirs import peak_bytes

    side, source = options.memory_of
    prepared = prepare(options, options.tasks[0], side, Path(source), gradient=False)
    for _ in range(STEPS_FOR_MEMORY):
        prepared.side.wait(prepared.side.call())
    return peak_bytes()


def as_text(content: dict[str, Any]) -> str:
    """All of it, for a terminal."""
    lines = [machine.in_words(content)]
    for case in content["cases"]:
        others = case["share_of_cores_used_by_others"]
        lines += ["", f"{case['task']}, {content['model']}, {case['batch']} clips a step"]
        if others is not None and others > 0.05:
            lines.append(f"  DISTURBED: other processes used {others:.0%} of the cores")
        for side, found in case["sides"].items():
            line = (
                f"  {side:<14} {found['median_seconds']:7.2f} s  "
                f"{found['median_processor_seconds']:7.2f} processor s  "
                f"{found['peak_bytes'] / 1e6:7.0f} MB"
            )
            if side != THEIRS:
                ratio = case["ratios"][side]
                line += (
                    f"   of torch's: {ratio['seconds']:.2f}, processor "
                    f"{ratio['processor_seconds']:.2f}, memory {ratio['peak_bytes']:.2f};"
                    f" gradient off by {found['gradient_relative_l2']:.1e}"
                )
                line += "" if found["agrees"] else "  DISAGREES"
            lines.append(line)
    return "\n".join(lines)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options, with those of a quick run filled in."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--model", default="small", help="(small)")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--dtypes", nargs="+", choices=list(LIMITS), default=list(LIMITS))
    parser.add_argument("--batch", type=int, default=2, metavar="N", help="clips a step (2)")
    parser.add_argument("--pairs", type=int, default=6, metavar="N", help="samples a side (6)")
    parser.add_argument("--cores", type=int, metavar="N", help="of this machine, for both (all)")
    parser.add_argument("--remat", action="store_true", help="ours in the least memory")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--quick", action="store_true", help="a tiny network: shows that it runs")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.quick:
        options.model, options.pairs = "tiny", 2
    return options


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    options = parse(argv)
    if options.cores:
        # Before either library asks how many there are; their processes inherit it.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    if options.memory_of:
        print(memory_of(options))
        return 0
    packages = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers")
    content = machine.describe(packages) | {"model": options.model, "pairs": options.pairs}
    with tempfile.TemporaryDirectory(prefix="benchmark_") as folder:
        content["cases"] = [measure(options, name, Path(folder)) for name in options.tasks]
    print(as_text(content))
    if options.json:
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    agree = [
        side.get("agrees", True) for case in content["cases"] for side in case["sides"].values()
    ]
    return int(not all(agree))


if __name__ == "__main__":
    sys.exit(main())
