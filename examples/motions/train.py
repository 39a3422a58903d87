"""Train the model in the box: pre-train on clips without labels, fine-tune, evaluate.

    python -m examples.motions.train WORKDIR [--from-scratch]

Within an hour on two cores. WORKDIR gets the clips, the runs (`pretrained/`, `finetuned/`, each
with metrics.jsonl) and `figures.json`: the accuracy on clips of a seed that training never saw,
and that on the same clips with their frames shuffled. `--from-scratch` also trains the same
network without pre-training, for as many clips as both runs saw together, and adds its accuracy.
Every step is one of this package's commands, which is printed. The same command again goes on
where it ended. To put the result into the package: `python -m examples.motions.box
WORKDIR/finetuned/final OUT`.
"""

import argparse
import contextlib
import io
import json
import shlex
import sys
import time
from pathlib import Path

from examples.motions import generate
from videomae_jax import __main__ as videomae
from videomae_jax.training.recipes import RECIPES

PRETRAIN, FINETUNE = "tiny-pretrain", "tiny-finetune"
UNLABELLED, LABELLED, UNSEEN = (6000, 1), (12000, 2), (600, 3)
"""Clips, and the seed that they are drawn with."""


def train(workdir: Path, *, from_scratch: bool = False) -> dict[str, float]:
    """All steps; returns the figures.

    Raises:
        RuntimeError: naming the command that failed.
    """
    unlabelled = _packed(workdir / "unlabelled", *UNLABELLED)
    labelled = _packed(workdir / "labelled", *LABELLED)
    unseen = generate.generate(workdir / "unseen", count=UNSEEN[0], seed=UNSEEN[1])
    tune = ("finetune", "--recipe", FINETUNE, "--data", labelled)
    pretrained = _trained(
        workdir / "pretrained", "pretrain", "--recipe", PRETRAIN, "--data", unlabelled
    )
    finetuned = _trained(workdir / "finetuned", *tune, "--init", pretrained)
    figures = {
        "top1": _top1(unseen, finetuned),
        "top1_shuffled_frames": _top1(unseen, finetuned, "--shuffle-frames", "0"),
    }
    if from_scratch:
        epochs = f"--optimizer.epochs={epochs_from_scratch():g}"
        figures["top1_from_scratch"] = _top1(
            unseen, _trained(workdir / "from-scratch", *tune, epochs)
        )
    (workdir / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


def epochs_from_scratch() -> float:
    """Of fine-tuning, in which as many clips are seen as in pre-training and fine-tuning.

    A clip of pre-training costs less than one of fine-tuning, so that the network without it gets
    more arithmetic, not less.
    """
    pretraining = RECIPES[PRETRAIN].optimizer.epochs * UNLABELLED[0]
    return RECIPES[FINETUNE].optimizer.epochs + pretraining / LABELLED[0]


def _packed(folder: Path, count: int, seed: int) -> Path:
    """Clips as files, and then decoded once for all epochs."""
    packed = folder.with_name(f"{folder.name}-packed")
    if not packed.exists():
        manifest = generate.generate(folder, count=count, seed=seed)
        canvas = RECIPES[FINETUNE].input.canvas
        _run("pack", packed, "--data", manifest, "--canvas", canvas)
    return packed


def _trained(folder: Path, *words: object) -> Path:
    """The model of a run, gone on with where it isn't done, and refused if it is another."""
    final = folder / "final"
    _run(*words, "--workdir", folder)
    if not final.exists():
        raise RuntimeError(f"{folder}: stopped before its end; the same command again goes on")
    return final


def _top1(manifest: Path, model: Path, *options: str) -> float:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        _run("evaluate", "--data", manifest, "--model", model, "--json", *options)
    return json.loads(said.getvalue())["top1"]


def _run(*words: object) -> None:
    """One command of `videomae`, in this process."""
    arguments = [str(word) for word in words]
    sys.stderr.write(f"$ videomae {shlex.join(arguments)}\n")
    start = time.perf_counter()
    if videomae.main(arguments):
        raise RuntimeError(f"videomae {arguments[0]} failed; the same command again goes on")
    sys.stderr.write(f"{arguments[0]}: {time.perf_counter() - start:.0f} s\n")


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.motions.train", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("workdir", type=Path, metavar="WORKDIR", help="folder for everything")
    parser.add_argument(
        "--from-scratch", action="store_true", help="also train without pre-training, to compare"
    )
    options = parser.parse_args(argv)
    try:
        figures = train(options.workdir, from_scratch=options.from_scratch)
    except (OSError, RuntimeError, ValueError) as error:
        parser.exit(2, f"train: error: {error}\n")
    print(json.dumps(figures, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
