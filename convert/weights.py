"""A weight file -> {name: tensor read on demand}, whichever format it has.

Safetensors are read without torch. Pickles (`.pth`, `.bin`) are read by torch with
`weights_only=True` and never otherwise: a file that needs more is refused.
"""

from pathlib import Path
from typing import Literal

from convert.errors import ConversionError
from convert.safetensors_file import read_safetensors
from convert.tensors import Tensor as Tensor
from convert.tensors import Weights as Weights
from convert.torch_file import read_torch

Choice = Literal["model", "ema"]


def read_weights(path: Path, *, choice: Choice = "model") -> Weights:
    """Open a safetensors file, by its suffix, or a torch file.

    `choice` says which of a torch file's weights: the trained ones, or their running average.

    Raises:
        ConversionError: for a file that can't be read, or lacks what was chosen, naming it.
    """
    # The suffix of the name as given: in the hub's cache it is a link to a file without one.
    if path.suffix.lower() != ".safetensors":
        return read_torch(path, choice=choice)
    if choice == "ema":
        raise ConversionError(
            f"{path}: a safetensors file has no averaged weights beside the others; leave out "
            f"--weights ema"
        )
    return read_safetensors(path)
