"""Rows -> a packed folder: every frame of every video decoded and resized once, for many epochs.

`videomae_jax.training.packed` says what lies in it and reads it. Of a folder that is being written
nothing stands at its place; it is renamed to it when it is whole.
"""

import contextlib
import functools
import io
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from videomae_jax.command import one_line
from videomae_jax.decoders import VideoError
from videomae_jax.resizing import resize_pil
from videomae_jax.training.listing import ExamplesError, Rows
from videomae_jax.training.packed import EXAMPLES, FORMAT, INDEX
from videomae_jax.video import each_frame
from videomae_jax.writing import CheckpointError, new_directory, write_json

ENCODINGS = ("raw", "jpeg")
# Shards are alike whatever the number of workers: this many at least, where there are so many
# videos, and so many videos in one at most.
FEWEST_SHARDS, MOST_VIDEOS = 16, 1024
# A record by itself, as it is: neither pixels nor JPEG get much smaller by being packed again.
WRITING = "group_size:1,uncompressed"


class Video(NamedTuple):
    """Where a row's frames lie, and the size that they had."""

    row: int
    frames: int
    height: int
    width: int
    shard: int
    first: int


class Result(NamedTuple):
    """What was packed: how many videos and frames, in how many bytes; and how many were bad."""

    videos: int
    frames: int
    bytes: int
    failed: int


def pack(
    rows: Rows,
    out: str | os.PathLike,
    *,
    canvas: int = 256,
    encoding: str = "raw",
    quality: int = 90,
    workers: int | None = None,
    on_bad_video: str = "skip",
    report: Callable[[str], Any] = print,
    progress: Callable[[int], Any] = lambda videos: None,
) -> Result:
    """Write all frames of the videos of `rows` to a new folder `out`, canvas x canvas each.

    encoding: "raw" keeps the pixels (3 * canvas^2 bytes a frame): batches are bit for bit those
        from the files. "jpeg" of a `quality` from 1 to 95 is about a tenth of that, and near.
    workers: threads, each with a video of its own; None is one for each core. A frame is held at
        a time, however long a video is.
    on_bad_video: "skip" leaves a bad video out and calls `report` with a line; "stop" raises.
    progress: called with the number of videos that are done, 1, after each.

    Raises:
        VideoError: (a ValueError) for a bad video, with "stop".
        ExamplesError: (a ValueError) if no video is good.
        CheckpointError: (a ValueError) if `out` exists or can't be written to.
        ValueError: for an option that can't be.
    """
    _check(rows, canvas, encoding, quality, workers)
    encode = functools.partial(_encode, canvas=canvas, quality=quality if encoding != "raw" else 0)
    shards = _shards(len(rows.paths))
    try:
        with new_directory(out) as folder:
            packer = _Packer(rows, folder, encode, on_bad_video == "stop", report, progress)
            videos = packer.run(shards, workers or os.cpu_count() or 1)
            if not videos:
                raise ExamplesError(
                    f"{rows.source}: none of {len(rows.paths)} videos can be packed"
                )
            _write_table(folder / EXAMPLES, rows, videos)
            sizes = {
                name: os.path.getsize(folder / name) for name in map(_name, range(len(shards)))
            }
            index = {
                "format": FORMAT,
                "encoding": encoding,
                "canvas": [canvas, canvas],
                "shards": [{"name": name, "bytes": size} for name, size in sizes.items()],
            }
            write_json(folder / INDEX, index)
    except OSError as error:
        raise CheckpointError(f"{out}: can't be written ({one_line(error)})") from error
    frames = sum(video.frames for video in videos)
    return Result(len(videos), frames, sum(sizes.values()), len(rows.paths) - len(videos))


def _check(rows: Rows, canvas: int, encoding: str, quality: int, workers: int | None) -> None:
    if canvas < 1:
        raise ValueError(f"canvas must be at least 1, got {canvas}")
    if encoding not in ENCODINGS:
        raise ValueError(f"the format must be one of {', '.join(ENCODINGS)}, got {encoding!r}")
    if not 1 <= quality <= 95:
        raise ValueError(f"quality must be 1 to 95, got {quality}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    if rows.packed is not None:
        raise ValueError(f"{rows.source}: is packed already; pack what it was made of")


def _shards(count: int) -> list[range]:
    """The rows of each shard."""
    each = max(1, min(MOST_VIDEOS, -(-count // FEWEST_SHARDS)))
    return [range(start, min(start + each, count)) for start in range(0, count, each)]


def _name(shard: int) -> str:
    return f"shard-{shard:05d}.array_record"


def _encode(frame: np.ndarray, *, canvas: int, quality: int) -> bytes:
    """A frame as a record; of quality 0 the pixels."""
    if frame.shape[:2] != (canvas, canvas):
        frame = resize_pil(frame, canvas, canvas)
    if not quality:
        return frame.tobytes()
    from PIL import Image

    target = io.BytesIO()
    Image.fromarray(frame).save(target, "JPEG", quality=quality)
    return target.getvalue()


class _Packer:
    """Writes shards at the same time; one that fails ends the others."""

    def __init__(
        self,
        rows: Rows,
        folder: Path,
        encode: Callable[[np.ndarray], bytes],
        stop: bool,
        report: Callable[[str], Any],
        progress: Callable[[int], Any],
    ):
        self._rows, self._folder, self._encode, self._stop = rows, folder, encode, stop
        self._report, self._progress = report, progress
        self._ended = threading.Event()
        self._telling = threading.Lock()

    def run(self, shards: list[range], workers: int) -> list[Video]:
        """The videos that are good, in the order of their rows."""
        with ThreadPoolExecutor(workers, thread_name_prefix="pack") as pool:
            tasks = [pool.submit(self._shard, number, part) for number, part in enumerate(shards)]
            try:
                found = [video for task in as_completed(tasks) for video in task.result()]
            except BaseException:
                self._ended.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return sorted(found)

    def _shard(self, shard: int, part: range) -> list[Video]:
        path = self._folder / _name(shard)
        videos: list[Video] = []
        with _written(path) as write:
            count = 0
            for row in part:
                before, height, width = count, 0, 0
                try:
                    for frame in each_frame(self._rows.paths[row], threads=False):
                        if self._ended.is_set():
                            return []
                        # Frames of a bad video stay where they are: no row names them.
                        write(self._encode(frame))
                        count, (height, width) = count + 1, frame.shape[:2]
                    videos.append(Video(row, count - before, height, width, shard, before))
                except VideoError as error:
                    if self._stop:
                        raise
                    self._tell(self._report, str(error))
                self._tell(self._progress, 1)
        return videos

    def _tell(self, whom: Callable[[Any], Any], what: Any) -> None:
        with self._telling:
            whom(what)


@contextlib.contextmanager
def _written(path: Path) -> Iterator[Callable[[bytes], None]]:
    """What writes a record to a shard, which is on the disk and read back when this is left.

    Raises:
        OSError: if it can't be written, as on a full disk.
    """
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

    count = 0
    try:
        writer = ArrayRecordWriter(str(path), WRITING)

        def write(record: bytes) -> None:
            nonlocal count
            writer.write(record)
            count += 1

        try:
            yield write
        finally:
            writer.close()
        with path.open("rb") as file:
            os.fsync(file.fileno())
        reader = ArrayRecordReader(str(path))
        if reader.num_records() != count:
            raise OSError(f"{path}: {reader.num_records()} of {count} records were written")
        reader.close()
    # What the library raises, whatever the trouble is.
    except RuntimeError as error:
        raise OSError(one_line(error)) from error


def _write_table(path: Path, rows: Rows, videos: list[Video]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {"path": [os.path.abspath(rows.paths[each.row]) for each in videos]}
    if rows.labels is not None:
        labels = [rows.labels[each.row] for each in videos]
        try:
            columns["label"] = pa.array(labels)
        # Of several lists one may have names and another numbers: as they are written.
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            columns["label"] = [None if label is None else str(label) for label in labels]
    if rows.splits is not None:
        columns["split"] = [rows.splits[each.row] for each in videos]
    for name in Video._fields[1:]:
        columns[name] = np.array([getattr(each, name) for each in videos], np.int64)
    pq.write_table(pa.table(columns), path)
