"""A weight file -> {name: tensor read on demand}.

Safetensors are read without torch. Pickles (`.pth`, `.bin`) are read by torch with
`weights_only=True` and never otherwise: a file that needs more is refused.
"""

import argparse
import dataclasses
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convert.errors import ConversionError

# Where training scripts keep the weights: torch's trainers, then DeepSpeed's.
WEIGHT_ENTRIES = ("model", "module")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor in a file: shape and dtype at once, values when read."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """What a file holds: its tensors, the entry they lay under, the names of what lay beside."""

    tensors: Mapping[str, Tensor]
    entry: str | None = None
    ignored_entries: tuple[str, ...] = ()


def read_weights(path: Path) -> Weights:
    """Open a safetensors file, by its suffix, or a torch file.

    Raises:
        ConversionError: for a file that can't be read, naming it.
    """
    return read_safetensors(path) if path.suffix == ".safetensors" else read_pickle(path)


def read_safetensors(path: Path) -> Weights:
    """Open a safetensors file. Each read opens it anew, so that no mapped page stays in memory.

    Raises:
        ConversionError: if the header is damaged or does not fit the file.
    """
    with _opened_safetensors(path) as file:
        names = list(file.keys())
        slices = {name: file.get_slice(name) for name in names}
        shapes = {name: tuple(slices[name].get_shape()) for name in names}
        dtypes = {name: slices[name].get_dtype() for name in names}

    def reader(name: str) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            with _opened_safetensors(path) as file:
                return file.get_tensor(name)

        return read

    return Weights(
        tensors={name: Tensor(shapes[name], dtypes[name], reader(name)) for name in names}
    )


def read_pickle(path: Path) -> Weights:
    """Open a torch file: a state_dict, bare or under one of `WEIGHT_ENTRIES`.

    Raises:
        ConversionError: if torch is missing, the file is damaged, would run code, or holds no
            weights.
    """
    file = TorchFile(path)

    def reader(name: str) -> Callable[[], np.ndarray]:
        return lambda: file.read(name)

    tensors = {
        name: Tensor(tuple(value.shape), _dtype(value), reader(name))
        for name, value in file.tensors.items()
    }
    return Weights(tensors=tensors, entry=file.entry, ignored_entries=file.ignored_entries)


class TorchFile:
    """The tensors of a torch file, mapped where its format allows.

    A page that was read stays in memory as long as its mapping, so the file is mapped anew whenever
    a sixteenth of it has been read.
    """

    def __init__(self, path: Path):
        self._path = path
        self._size = path.stat().st_size
        with path.open("rb") as file:
            # A zip; what torch wrote before 1.6 can't be mapped.
            self._mapped = file.read(4) == b"PK\x03\x04"
        self._open()

    def read(self, name: str) -> np.ndarray:
        """The values of a tensor; half precision, of which NumPy lacks one, as float32."""
        import torch

        if self._mapped and self._bytes_read > self._size / 16:
            self._open()
        value = self.tensors[name]
        self._bytes_read += value.nbytes
        half = value.dtype in (torch.bfloat16, torch.float16)
        return (value.float() if half else value).numpy(force=True)

    def _open(self) -> None:
        self._bytes_read = 0
        content = _load(self._path, mmap=self._mapped)
        self.entry, weights = None, content
        for name in WEIGHT_ENTRIES:
            if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
                self.entry, weights = name, content[name]
                break
        self.tensors = _tensors(weights)
        if not self.tensors:
            raise ConversionError(
                f"{self._path}: no tensors found, neither at the top nor under "
                f"{' or '.join(map(repr, WEIGHT_ENTRIES))}"
            )
        beside = set(weights) - set(self.tensors)
        if self.entry is not None:
            beside |= set(content) - {self.entry}
        self.ignored_entries = tuple(sorted(map(str, beside)))


def _opened_safetensors(path: Path):
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise ConversionError(
            f"{path}: not a readable safetensors file ({error}); download it again"
        ) from error


def _load(path: Path, *, mmap: bool) -> Any:
    try:
        import torch
    except ImportError as error:
        raise ConversionError(
            f"{path}: reading it needs torch; pip install 'videomae-jax[torch]', or convert it "
            f"to safetensors elsewhere"
        ) from error
    try:
        # Files of training runs keep their command line, a plain Namespace, beside the weights.
        # torch's warnings are on how a file was written, of which its reader can change nothing.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    # A damaged file can fail anywhere in torch's reader, or in the unpickler it drives.
    except Exception as error:
        raise ConversionError(_load_problem(path, error)) from error


def _load_problem(path: Path, error: Exception) -> str:
    """What to say of a file that torch can't load: never its advice to load it unsafely."""
    forbidden = re.search(r"GLOBAL ([\w.]+)", str(error))
    if isinstance(error, pickle.UnpicklingError) and forbidden:
        return (
            f"{path}: refused, because it asks for {forbidden[1]}, which could run code; "
            f"save the weights alone: torch.save(model.state_dict(), ...)"
        )
    reason = "damaged, cut short or something else"
    if path.stat().st_size == 0:
        reason = "empty"
    elif isinstance(error, RuntimeError):
        # Without the line of torch's source that some begin with.
        reason = re.sub(r"^\[.*?\][ .]*", "", str(error)).partition(". ")[0]
    return (
        f"{path}: not a readable torch file ({reason}); download it again, or save the weights "
        f"alone: torch.save(model.state_dict(), ...)"
    )


def _tensors(weights: Any) -> dict[str, Any]:
    import torch

    if not isinstance(weights, Mapping):
        return {}
    return {
        str(name): value.detach()
        for name, value in weights.items()
        if isinstance(value, torch.Tensor)
    }


def _dtype(value) -> str:
    import torch

    name = str(value.dtype).removeprefix("torch.")
    # A torch file may hold sparse, quantized and valueless tensors, and shapes that a single number
    # was spread over; none of them are weights.
    plain = value.layout is torch.strided and value.device.type == "cpu" and not value.is_quantized
    if plain and value.nbytes <= value.untyped_storage().nbytes():
        return name
    return f"{name}, but no plain array"
