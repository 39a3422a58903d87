"""Named arrays -> files for PyTorch, whole or not at all, and read back to prove it."""

import contextlib
import os
import uuid
from collections.abc import Iterator, Mapping
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


@contextlib.contextmanager
def new_file(out: str | os.PathLike) -> Iterator[Path]:
    """A temporary sibling, renamed to `out` on leaving and removed if the body raises.

    Raises:
        CheckpointError: if `out` exists.
        ConversionError: if its folder can't be made.
    """
    out = Path(out)
    checkpoint.refuse_existing(out)
    # torch's readers go by the suffix, as ours do.
    sibling = out.with_name(f".{out.stem}.{uuid.uuid4().hex[:8]}{out.suffix}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConversionError(f"{out}: can't be made ({error.strerror})") from error
    try:
        yield sibling
        checkpoint.refuse_existing(out)
        sibling.rename(out)
    finally:
        sibling.unlink(missing_ok=True)
