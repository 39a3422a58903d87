"""A torch file (`.pth`, `.pt`, `.bin`) -> {name: tensor read on demand}.

torch reads it, with `weights_only=True` always, after its claims on sizes were compared with it.
"""

import argparse
import pathlib
import pickle
import re
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convert.errors import ConversionError
from convert.pickle_scan import Limited, Scan
from convert.tensors import Tensor, Weights
from convert.torch_archive import check_archive

# Where training scripts keep the weights: the original code, DeepSpeed, mmaction2 and Lightning,
# others; and where they keep a running average of them.
ENTRIES = {
    "model": ("model", "module", "state_dict", "model_state_dict"),
    "ema": ("model_ema", "ema", "ema_state_dict", "state_dict_ema", "model_ema_state_dict"),
}
# What files of training runs keep beside the weights, and what is plain data: their command line, a
# Namespace; paths in that; the best score, a scalar of NumPy 1 or 2.
NUMPY_SCALAR = np._core.multiarray.scalar
PLAIN_DATA: list[Any] = [
    argparse.Namespace,
    pathlib.PosixPath,
    pathlib.PurePosixPath,
    (NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    (NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "float16", "int64", "int32", "bool")),
]
# Weights that share memory count as often as they are named; nothing shares more than twice.
MOST_SHARED = 4
# Pickles before the tensors of a file from before zip: a constant, a version, the machine's sizes,
# the content, the keys of the storages.
OLD_PICKLES = 5
OLD_MAGIC = 0x1950A86A20F9469CFC6C


def read_torch(path: Path, *, choice: str = "model") -> Weights:
    """Open a torch file: a state_dict, bare or under one of `ENTRIES[choice]`.

    Raises:
        ConversionError: if torch is missing, the file is damaged, would run code, or holds no
            such weights.
    """
    file = TorchFile(path, choice=choice)

    def reader(name: str) -> Callable[[], np.ndarray]:
        return lambda: file.read(name)

    tensors = {
        name: Tensor(tuple(value.shape), _dtype(value), reader(name))
        for name, value in file.tensors.items()
    }
    return Weights(
        tensors=tensors,
        entry=file.entry,
        ignored_entries=file.ignored_entries,
        averaged=file.averaged,
    )


class TorchFile:
    """The tensors of a torch file, mapped where its format allows.

    A page that was read stays in memory as long as its mapping, so the file is mapped anew whenever
    a sixteenth of it has been read.
    """

    def __init__(self, path: Path, *, choice: str = "model"):
        _need_torch(path)
        self._path, self._choice = path, choice
        # Tensors may be read by several threads.
        self._lock = threading.Lock()
        self._mapped = _check(path)
        self._size = path.stat().st_size
        self._open()
        for name in self.tensors:
            if not name.isprintable():
                raise ConversionError(f"{path}: a tensor is named {name[:80]!r}; name it plainly")
        claimed = sum(value.nbytes for value in self.tensors.values() if _is_plain(value))
        if claimed > MOST_SHARED * self._size:
            raise ConversionError(
                f"{path}: its tensors claim {claimed} bytes, the file has {self._size}; save the "
                f"weights alone: torch.save(model.state_dict(), ...)"
            )

    def read(self, name: str) -> np.ndarray:
        """The values of a tensor; half precision, of which NumPy lacks one, as float32."""
        import torch

        with self._lock:
            if self._mapped and self._bytes_read > self._size / 16:
                self._open()
            value = self.tensors[name]
            if not _is_plain(value):
                raise ConversionError(f"{self._path}: {name} is {_dtype(value)}")
            self._bytes_read += value.nbytes
        half = value.dtype in (torch.bfloat16, torch.float16)
        try:
            return (value.float() if half else value).numpy(force=True)
        # NumPy lacks some of torch's dtypes; numbers have none of those.
        except (TypeError, RuntimeError) as error:
            raise ConversionError(
                f"{self._path}: {name} can't be read as {_dtype(value)}"
            ) from error

    def _open(self) -> None:
        self._bytes_read = 0
        content = _load(self._path, mmap=self._mapped)
        self.entry, weights = _choose(self._path, content, self._choice)
        self.tensors = _tensors(weights)
        beside: set[Any] = set(weights) - set(self.tensors)
        self.averaged = None
        if self.entry is not None:
            beside |= set(content) - {self.entry}
        if self._choice == "model":
            self.averaged = next(_held(content, ENTRIES["ema"]), None)
        self.ignored_entries = tuple(sorted(map(_shown, beside)))


def _choose(path: Path, content: Any, choice: str) -> tuple[str | None, Mapping[Any, Any]]:
    """The entry that was chosen, if it is one, and the weights in it."""
    name = next(_held(content, ENTRIES[choice]), None)
    if name is not None:
        return name, content[name]
    if choice == "model" and _tensors(content):
        return None, content
    names = ", ".join(ENTRIES[choice])
    if choice == "ema":
        raise ConversionError(
            f"{path}: holds no averaged weights (under {names}); {_top(content)}; leave out "
            f"--weights ema"
        )
    averaged = next(_held(content, ENTRIES["ema"]), None)
    mend = f"; --weights ema takes {averaged}" if averaged is not None else ""
    raise ConversionError(
        f"{path}: no tensors found, neither at the top nor under {names}; {_top(content)}{mend}"
    )


def _held(content: Any, names: Iterable[str]) -> Iterator[str]:
    """Those of the entries that hold weights."""
    return (name for name in names if isinstance(content, Mapping) and _tensors(content.get(name)))


def _top(content: Any, most: int = 8) -> str:
    """What lies at the top of a file, in words."""
    if not isinstance(content, Mapping):
        return f"it holds no entries but a {type(content).__name__}"
    if not content:
        return "it is empty"
    names = sorted(map(_shown, content))
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"at its top are {', '.join(names[:most])}{more}"


def _shown(name: Any) -> str:
    """The name of an entry, short and in one line; anything can be one."""
    text = str(name)
    return text if text.isprintable() and len(text) <= 80 else ascii(text[:80])


def _check(path: Path) -> bool:
    """Refuse what claims more than the file holds; returns whether it is a zip, to be mapped."""
    try:
        with path.open("rb") as file:
            if file.read(4) == b"PK\x03\x04":
                check_archive(path)
                return True
            file.seek(0)
            if path.stat().st_size == 0:
                raise ValueError("empty")
            _check_old(file, path.stat().st_size)
            return False
    # zipfile and pickletools fail in many ways, too.
    except Exception as error:
        raise ConversionError(_unreadable(path, str(error) or "damaged")) from error


def _check_old(file: Any, size: int) -> None:
    """Refuse a file from before zip whose storages are larger than it."""
    limited = Limited(file)
    scans = []
    for number in range(OLD_PICKLES):
        scans.append(Scan().read(limited))
        if number == 0 and scans[0].result != OLD_MAGIC:
            raise ValueError("something else, or a bare pickle")
    claimed = sum(storage for scan in scans for storage in scan.storages.values())
    if claimed > size:
        raise ValueError(f"its tensors claim {claimed} bytes, it has {size}")


def _need_torch(path: Path) -> None:
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise ConversionError(
            f"{path}: reading it needs torch; pip install 'videomae-jax[torch]', or convert it "
            f"to safetensors elsewhere"
        ) from error


def _load(path: Path, *, mmap: bool) -> Any:
    import torch

    try:
        # torch's warnings are on how a file was written, of which its reader can change nothing.
        with torch.serialization.safe_globals(PLAIN_DATA), warnings.catch_warnings():
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
    if isinstance(error, RuntimeError):
        # Without the line of torch's source that some begin with.
        reason = re.sub(r"^\[.*?\][ .]*", "", str(error)).partition(". ")[0]
    return _unreadable(path, reason)


def _unreadable(path: Path, reason: str) -> str:
    reason = reason if len(reason) < 200 else f"{reason[:200]} ..."
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


def _is_plain(value: Any) -> bool:
    """Whether a tensor is an array of as many values as lie in the file.

    A torch file may hold sparse, quantized and valueless tensors, and shapes that a single number
    was spread over; none of them are weights.
    """
    import torch

    plain = value.layout is torch.strided and value.device.type == "cpu" and not value.is_quantized
    return plain and value.nbytes <= value.untyped_storage().nbytes()


def _dtype(value: Any) -> str:
    name = str(value.dtype).removeprefix("torch.")
    return name if _is_plain(value) else f"{name}, but no plain array"
