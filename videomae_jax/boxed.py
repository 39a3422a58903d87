"""The model in the box: what `load()` and a command without `--model` use.

    videomae_jax/boxed_models/motions/    a Hugging Face folder, a file of the package

A toy, small enough to ship, that tells kinds of motion apart. It is converted on first use, as any
checkpoint for PyTorch is.
"""

import json
import logging
import os
from pathlib import Path

from videomae_jax.writing import CheckpointError

logger = logging.getLogger(__name__)

NAME = "motions"
FOLDER = Path(__file__).parent / "boxed_models" / NAME
FILES = ("config.json", "model.safetensors", "preprocessor_config.json")

OPTION_HELP = (
    "a directory that `python -m convert` wrote; or a checkpoint for PyTorch (an id on the Hugging "
    "Face hub, a folder, a file), converted on first use "
    f"(default: the boxed model {NAME!r}, a toy)"
)
"""What `--model` is, for the `--help` of every command that has it."""


def model_or_boxed(model: str | os.PathLike | None) -> str | os.PathLike:
    """`model` itself; or, where that is None, the folder of the boxed one, which the log says.

    Raises:
        CheckpointError: if this installation lacks it.
    """
    if model is not None:
        return model
    folder = boxed_model()
    logger.info(
        "no --model given: using the boxed model %r (%d kinds of motion; a toy to try things with, "
        "not for other videos)",
        NAME,
        len(_class_names(folder)),
    )
    return folder


def boxed_model() -> Path:
    """The folder of the model in the box.

    Raises:
        CheckpointError: if this installation lacks it, or part of it.
    """
    missing = [name for name in FILES if not (FOLDER / name).is_file()]
    if missing:
        raise CheckpointError(
            f"no model is given, and this installation lacks the boxed model {NAME!r} "
            f"({', '.join(missing)} missing in {FOLDER}); name a model, or install videomae-jax "
            f"again"
        )
    return FOLDER


def _class_names(folder: Path) -> dict[str, str]:
    try:
        names = json.loads((folder / "config.json").read_text(encoding="utf-8"))["id2label"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(
            f"{folder / 'config.json'}: is damaged ({error}); install videomae-jax again"
        ) from error
    return names
