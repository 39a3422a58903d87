"""Named arrays -> files for PyTorch, and read back to prove it."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from convert.errors import ConversionError
from convert.source import Source
from videomae_jax import checkpoint


def save_safetensors(tensors: Mapping[str, np.ndarray], path: Path) -> None:
    """Write a safetensors file; the arrays must be contiguous."""
    from safetensors.numpy import save_file

    for name, values in tensors.items():
        if not values.flags.c_contiguous:
            # The library would write the memory as it lies (its issue 825), without a word.
            raise ValueError(f"{name} is not contiguous")
    path.touch()
    mode = path.stat().st_mode
    # transformers wants to be told that the layout is PyTorch's.
    save_file(dict(tensors), path, metadata={"format": "pt"})
    # The library makes a file that nobody else may read.
    path.chmod(mode)
    _to_disk(path)


def save_torch(tensors: Mapping[str, np.ndarray], path: Path) -> None:
    """Write a torch file with the tensors under "model".

    Raises:
        ConversionError: if torch is missing.
    """
    try:
        import torch
    except ImportError as error:
        raise ConversionError(
            "--to original needs torch; pip install 'videomae-jax[torch]'"
        ) from error

    def tensor(values: np.ndarray):
        # torch warns of arrays that it can't write into: those of JAX.
        values = values if values.flags.writeable else values.copy()
        if values.dtype == checkpoint.DTYPES["bfloat16"]:
            # torch knows nothing of ml_dtypes; the bits are the same.
            return torch.from_numpy(values.view(np.uint16)).view(torch.bfloat16)
        return torch.from_numpy(values)

    torch.save({"model": {name: tensor(values) for name, values in tensors.items()}}, path)
    _to_disk(path)


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def compare(source: Source, tensors: Mapping[str, np.ndarray]) -> None:
    """Refuse a file that doesn't give back what was written.

    Raises:
        ConversionError: naming the first tensor that differs.
    """
    if set(source.tensors) != set(tensors):
        raise ConversionError(f"{source.path}: other tensors are read back than were written")
    for name, values in tensors.items():
        given = source.tensors[name].read()
        if not np.array_equal(given.astype(np.float32), values.astype(np.float32)):
            raise ConversionError(f"{source.path}: {name} is read back otherwise than written")
