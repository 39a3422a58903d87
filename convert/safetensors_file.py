"""A safetensors file -> {name: tensor read on demand}.

The header is looked at here before the safetensors library sees the file: the library keeps the
last of two tensors of one name, and takes a header of 100 MB.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from convert.errors import ConversionError
from convert.json_file import parse_json
from convert.tensors import Tensor, Weights

# A model of 2,000 tensors has 0.2 MB.
MOST_HEADER_BYTES = 4 * 2**20
LENGTH_BYTES = 8


def read_safetensors(path: Path) -> Weights:
    """Open a safetensors file. Each read opens it anew, so that no mapped page stays in memory.

    Raises:
        ConversionError: if the header is damaged or does not fit the file.
    """
    _check_header(path)
    with _opened(path) as file:
        names = list(file.keys())
        slices = {name: file.get_slice(name) for name in names}
        shapes = {name: tuple(slices[name].get_shape()) for name in names}
        dtypes = {name: slices[name].get_dtype() for name in names}

    def reader(name: str) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            with _opened(path) as file:
                try:
                    return file.get_tensor(name)
                # Shapes and dtypes that the format has and NumPy lacks; numbers have neither.
                except Exception as error:
                    raise ConversionError(
                        f"{path}: {name} {list(shapes[name])} can't be read as {dtypes[name]} "
                        f"({error})"
                    ) from error

        return read

    return Weights(
        tensors={name: Tensor(shapes[name], dtypes[name], reader(name)) for name in names}
    )


def _check_header(path: Path) -> None:
    """Refuse a header that is too long, no JSON object, or has a key twice."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if length > MOST_HEADER_BYTES:
                raise _unreadable(path, f"a header of {length} bytes")
            content = file.read(length)
        if len(content) < length:
            raise _unreadable(path, "its header is cut short")
        header = parse_json(content)
    except ConversionError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(header, dict):
        raise _unreadable(path, "its header is no JSON object")
    for name in header:
        if not name.isprintable():
            raise _unreadable(path, f"a tensor named {name!r}")


def _opened(path: Path):
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, reason: object) -> ConversionError:
    return ConversionError(f"{path}: not a readable safetensors file ({reason}); download it again")
