"""What `videomae pack` wrote, for reading: any frames of any video, without decoding it.

A packed folder holds shards of ArrayRecord, each record a frame on the canvas; `examples.parquet`,
a row for each video: `path`, `label` and `split` as the source has them, `frames`, the `height` and
`width` it had, and its `shard` and `first` record there; and `index.json`, written last.
"""

import dataclasses
import functools
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from videomae_jax.command import one_line
from videomae_jax.decoders import VideoError

INDEX, EXAMPLES = "index.json", "examples.parquet"
FORMAT = "videomae-jax pack 1"
# Each record is read by itself, from wherever it lies.
READING = "readahead_buffer_size:0,max_parallelism:0"


@dataclasses.dataclass(frozen=True)
class Packed:
    """The frames of the videos of a packed folder.

    canvas: height and width of all frames. encoding: "raw" or "jpeg". counts: frames of each
    video, sizes: its height and width before it was packed; shards, firsts: where its frames lie;
    these are arrays, with an entry for each video.
    """

    folder: Path
    canvas: tuple[int, int]
    encoding: str
    names: tuple[str, ...]
    counts: np.ndarray
    sizes: np.ndarray
    shards: np.ndarray
    firsts: np.ndarray

    def take(self, rows: np.ndarray) -> "Packed":
        """Some of the videos, in the given order."""
        names = ("counts", "sizes", "shards", "firsts")
        parts = {name: getattr(self, name)[rows] for name in names}
        return dataclasses.replace(self, **parts)

    def frames(self, row: int, indices: np.ndarray) -> UInt8[np.ndarray, "T h w 3"]:
        """Some frames of a video.

        Raises:
            VideoError: for a shard that is damaged.
        """
        path = self.folder / self.names[self.shards[row]]
        wanted, places = np.unique(indices, return_inverse=True)
        try:
            records = _reader(path).read((self.firsts[row] + wanted).tolist())
            frames = np.stack([self._frame(record) for record in records])
        # The library has no error of its own; Pillow's are OSErrors.
        except (IndexError, OSError, RuntimeError, ValueError) as error:
            raise VideoError(f"{path}: is damaged ({one_line(error)}); pack again") from error
        return frames[places]

    def _frame(self, record: bytes) -> np.ndarray:
        if self.encoding == "raw":
            return np.frombuffer(record, np.uint8).reshape(*self.canvas, 3)
        from PIL import Image

        return np.asarray(Image.open(io.BytesIO(record)).convert("RGB"))


def open_packed(folder: Path) -> tuple[Packed, Any]:
    """A packed folder, and the table of its videos; no frame is read.

    Raises:
        VideoError: (a ValueError) for a folder that is not whole or of another format.
    """
    from videomae_jax.tables import TableError, parquet_table

    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        if index.get("format") != FORMAT:
            raise VideoError(f"{folder}: {INDEX} is not of the format {FORMAT}; pack again")
        for shard in index["shards"]:
            _check_size(folder / shard["name"], shard["bytes"])
        table = parquet_table(folder / EXAMPLES)
        names = ("frames", "height", "width", "shard", "first")
        frames, height, width, shard, first = (table[name].to_numpy() for name in names)
        packed = Packed(
            folder=folder,
            canvas=(index["canvas"][0], index["canvas"][1]),
            encoding=index["encoding"],
            names=tuple(shard["name"] for shard in index["shards"]),
            counts=frames,
            sizes=np.stack([height, width], axis=1).astype(np.int32),
            shards=shard,
            firsts=first,
        )
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, TableError) as error:
        raise VideoError(f"{folder}: is damaged ({one_line(error)}); pack again") from error
    return packed, table


@functools.lru_cache(maxsize=256)
def _reader(path: Path) -> Any:
    """The open shard, once a process."""
    from array_record.python.array_record_module import ArrayRecordReader

    return ArrayRecordReader(str(path), READING)


def _check_size(path: Path, size: int) -> None:
    try:
        got = path.stat().st_size
    except OSError as error:
        raise VideoError(f"{path}: is missing ({error.strerror}); pack again") from error
    if got != size:
        raise VideoError(f"{path}: has {got:,} of {size:,} bytes; copy it or pack again")
