"""Arrays read straight from the files that `weights.save_params` has Orbax write.

    FOLDER/NAME/zarr.json      shape, dtype, layout (zarr 3)
    FOLDER/NAME/c/0/.../0      one shard of one chunk: the array's bytes, then where they are

Orbax reads them, too, and is the judge of what they mean; but importing it and its many tasks take
longer than the reading. What is laid out in any other way is `NotPlain`, and Orbax's to read.
"""

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

# What parameters may be stored as, whatever the network computes in.
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}

# XLA uses memory of the host as it is from this alignment on, and copies it otherwise.
ALIGNMENT = 64
# The chunk's place and length, and a check sum of these two.
INDEX = struct.Struct("<QQI")


class NotPlain(Exception):
    """A folder or file that isn't laid out as expected, or not there."""


def array_names(folder: Path) -> set[str]:
    """The names of the arrays in a folder.

    Raises:
        NotPlain: if there is none.
    """
    try:
        return {entry.name for entry in folder.iterdir() if entry.is_dir()}
    except OSError as error:
        raise NotPlain(str(error)) from error


def read_array(folder: Path, shape: Sequence[int]) -> np.ndarray:
    """An array of a known shape, in memory that JAX on a CPU takes over without a copy.

    Raises:
        NotPlain: if the file is of another shape or layout, damaged or missing.
    """
    try:
        dtype = _plain_dtype(json.loads((folder / "zarr.json").read_bytes()), list(shape))
        file = folder.joinpath("c", *("0" for _ in shape))
        array = _aligned_empty(shape, dtype)
        with file.open("rb", buffering=0) as shard:
            _read_whole(shard, array.reshape(-1).view(np.uint8).data)
            place, length, _ = INDEX.unpack(shard.read(INDEX.size + 1))
    except (OSError, ValueError, LookupError, TypeError, struct.error) as error:
        raise NotPlain(f"{folder}: {error}") from error
    if (place, length) != (0, array.nbytes):
        raise NotPlain(f"{folder}: the chunk is not at the start of the file")
    return array


def _plain_dtype(described: Any, shape: list[int]) -> np.dtype:
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    shard = {"chunk_shape": shape, "codecs": [little], "index_codecs": [little, {"name": "crc32c"}]}
    layout = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shape}},
        "chunk_key_encoding": {"name": "default"},
        "codecs": [{"name": "sharding_indexed", "configuration": shard}],
    }
    found = {key: described[key] for key in layout}
    if found != layout or 0 in shape:
        raise ValueError("another layout")
    return np.dtype(DTYPES[described["data_type"]])


def _aligned_empty(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def _read_whole(file: Any, target: memoryview) -> None:
    """Fill the memory; a system reads no more than 2 GiB at once."""
    while target:
        count = file.readinto(target)
        if not count:
            raise ValueError("the file ends early")
        target = target[count:]
