"""What is handed over as data -> rows: the path, label and split of each video, as written there.

A source is one of these; a folder may hold one of them each for train, val and test:

    a list      "path label" a line, by a space or a comma, the label last: the original's lists;
                or paths alone
    a table     CSV, TSV or Parquet with a column `path`, and `label` and `split` if there are any
    a folder    of a folder per class; of videos without labels; of the lists train.csv, val.csv
                and test.csv; of videos with a list manifest.csv; or what `videomae pack` wrote

Of a folder with train/, val/ or test/ in it, each holds such a folder of classes or of videos.
"""

import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from videomae_jax.command import one_line
from videomae_jax.containers import VIDEO_SUFFIXES
from videomae_jax.tables import DELIMITERS, TableError, csv_table, parquet_table, text_table
from videomae_jax.training.packed import INDEX, Packed, open_packed

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""What a part of the data may be called, and what it is called here; other names stay."""

LIST_SUFFIXES = (".csv", ".tsv", ".txt", ".list", ".parquet")
_SUFFIX = "|".join(sorted(suffix[1:] for suffix in VIDEO_SUFFIXES))
# The longest start of a line that is a video's path, and what comes after it.
_VIDEO = re.compile(rf"(.*\.(?:{_SUFFIX}))(?:[\"'])?(?:[\s,]+(.*))?", re.IGNORECASE)
_OTHER = re.compile(r"(.*?)(?:[\s,]+(\S*))?")


class ExamplesError(ValueError):
    """Data that nothing can be trained on; one line that names the file, the place and the mend."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """The videos of a source, in its order.

    paths: as they can be opened. labels: as they are written, a text, number or list each, None
    where there is none; splits: the names of `SPLITS`, or others; both None where the source has
    no such thing. where(i): what names the place of row i in an error. packed: the frames of the
    videos, row by row, of a folder that `videomae pack` wrote.
    """

    source: str
    paths: list[str]
    labels: list[Any] | None
    splits: list[str] | None
    where: Callable[[int], str]
    packed: Packed | None = None


def read_rows(source: str | os.PathLike, *, root: str | None = None) -> Rows:
    """Read a source (see the module). No video is looked for: a missing one is a bad video.

    Relative paths in a file are meant from `root`, by default the folder that the file lies in, or
    the current one if the first of them is only there.

    Raises:
        ExamplesError: (a ValueError) for what is missing, can't be read or has no videos.
    """
    path = Path(source)
    try:
        if path.is_dir():
            rows = _folder(path, root)
        elif path.suffix.lower() in VIDEO_SUFFIXES:
            path.stat()
            rows = Rows(str(path), [str(path)], None, None, lambda row: str(path))
        else:
            rows = _list(path, root)
    except FileNotFoundError as error:
        raise ExamplesError(f"{path}: doesn't exist; check the path") from error
    except OSError as error:
        raise ExamplesError(f"{path}: can't be read ({one_line(error)})") from error
    except TableError as error:
        raise ExamplesError(" ".join(f"{path}: {error}".split())) from error
    except ModuleNotFoundError as error:
        mend = "pip install 'videomae-jax[train]'"
        raise ExamplesError(f"{path}: {error.name} is not installed; {mend}") from error
    if not rows.paths:
        raise ExamplesError(f"{path}: has no videos; give a folder or a list of some")
    return rows


def _folder(folder: Path, root: str | None) -> Rows:
    if (folder / INDEX).is_file():
        return _packed(folder)
    entries = sorted(each for each in folder.iterdir() if not each.name.startswith("."))
    lists = [each for each in entries if each.suffix in LIST_SUFFIXES and each.is_file()]
    named = [(SPLITS[name], each) for each in lists if (name := each.stem.lower()) in SPLITS]
    if named:
        return _together(folder, [(split, _list(each, root)) for split, each in named])
    manifest = next((each for each in lists if each.stem == "manifest"), None)
    if manifest is not None:
        return _list(manifest, root)
    below = [each for each in entries if each.is_dir()]
    parts = [(SPLITS[name], each) for each in below if (name := each.name.lower()) in SPLITS]
    if len(parts) > 1 and len(parts) < len(below):
        other = next(each.name for each in below if each.name.lower() not in SPLITS)
        raise ExamplesError(
            f"{folder}: has {parts[0][1].name}/ and {parts[1][1].name}/, and {other}/ beside them; "
            f"move it elsewhere, or name a manifest"
        )
    if parts and len(parts) == len(below):
        return _together(folder, [(split, _classes(each)) for split, each in parts])
    return _classes(folder)


def _classes(folder: Path) -> Rows:
    """The videos below a folder, with the name of the folder in it that each lies in."""
    paths, labels = [], []
    for name in _videos(folder):
        first, inside, _ = name.partition("/")
        paths.append(str(folder / name))
        labels.append(first if inside else None)
    labelled = any(label is not None for label in labels)
    return Rows(str(folder), paths, labels if labelled else None, None, lambda row: paths[row])


def _videos(folder: Path) -> Iterator[str]:
    """The video files below a folder, as they are named from there, in order."""
    for where, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        prefix = Path(where).relative_to(folder)
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in VIDEO_SUFFIXES:
                yield (prefix / name).as_posix()


def _together(folder: Path, parts: list[tuple[str, Rows]]) -> Rows:
    """The rows of several sources, one after the other, each with the split it stands for."""
    places = [(rows, row) for _, rows in parts for row in range(len(rows.paths))]
    labels = None
    if any(rows.labels is not None for _, rows in parts):
        labels = [None if rows.labels is None else rows.labels[row] for rows, row in places]

    def where(row: int) -> str:
        rows, own = places[row]
        return rows.where(own)

    paths = [rows.paths[row] for rows, row in places]
    splits = [split for split, rows in parts for _ in rows.paths]
    return Rows(str(folder), paths, labels, splits, where)


def _packed(folder: Path) -> Rows:
    packed, table = open_packed(folder)
    rows = _from_table(folder, table, str(folder))
    return dataclasses.replace(rows, packed=packed)


def _list(file: Path, root: str | None) -> Rows:
    """The rows of a file: a table where it has a column `path`, else a list."""
    if file.suffix.lower() == ".parquet":
        return _from_table(file, parquet_table(file), root)
    content = file.read_bytes()
    head = content.partition(b"\n")[0].decode("utf-8-sig", "replace")
    for delimiter in dict.fromkeys([DELIMITERS.get(file.suffix.lower(), ","), ",", "\t"]):
        if "path" in [name.strip().strip('"') for name in head.split(delimiter)]:
            return _from_table(file, csv_table(content, delimiter), root)
    return _from_lines(file, content, root)


def _from_table(file: Path, table: Any, root: str | None) -> Rows:
    names = table.column_names
    if "path" not in names:
        there = ", ".join(names[:20])
        raise TableError(f"has no column `path` (but {there}); name the one with the videos so")
    columns = {
        name: table[name].to_pylist() for name in ("path", "label", "split") if name in names
    }

    def where(row: int) -> str:
        return f"{file}, row {row} (the first is 0)"

    for row, path in enumerate(columns["path"]):
        if not isinstance(path, str) or not path.strip():
            raise ExamplesError(f"{where(row)}: path must be text, got {path!r}")
    splits = columns.get("split")
    if splits is not None:
        splits = [_split(name, where, row) for row, name in enumerate(splits)]
    paths = _placed(file, columns["path"], root, where)
    return Rows(str(file), paths, columns.get("label"), splits, where)


def _split(value: Any, where: Callable[[int], str], row: int) -> str:
    """The name of a split, which may be a number of a fold."""
    name = "" if value is None else str(value).strip()
    if not name:
        raise ExamplesError(
            f"{where(row)}: has no split; write train, val or test, or another name"
        )
    return SPLITS.get(name.lower(), name)


def _from_lines(file: Path, content: bytes, root: str | None) -> Rows:
    """The rows of a list; a table of lines would have lost the numbers of the blank ones."""
    text_table(content)
    lines = content.decode("utf-8-sig").split("\n")
    found = [(number, _parted(line)) for number, line in enumerate(lines, 1) if line.strip()]
    numbers = [number for number, _ in found]

    def where(row: int) -> str:
        return f"{file}, line {numbers[row]}"

    if len(found) > 1 and not _is_video(found[0][1][0]) and _is_video(found[1][1][0]):
        raise ExamplesError(
            f"{where(0)}: {found[0][1][0]!r} is no video; if it is a header, write `path,label`, "
            f"with commas"
        )
    labels = [label for _, (_, label) in found]
    labelled = any(label is not None for label in labels)
    paths = _placed(file, [path for _, (path, _) in found], root, where)
    return Rows(str(file), paths, labels if labelled else None, None, where)


def _parted(line: str) -> tuple[str, str | None]:
    """The path and the label of a line of a list; None for no label.

    A path ends with a video's suffix, if it has one, so that there may be spaces in it. Of several
    numbers after it the label is the last, unless `;` lists several: the original's lists of
    frames have the number of frames, or the first one, between.
    """
    line = line.strip()
    found = _VIDEO.fullmatch(line) or _OTHER.fullmatch(line)
    path, rest = (found[1], found[2]) if found else (line, None)
    rest = (rest or "").strip().strip("\"'")
    return path.strip("\"'"), rest or None


def _is_video(path: str) -> bool:
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


def _placed(
    file: Path, paths: Sequence[str], root: str | None, where: Callable[[int], str]
) -> list[str]:
    """The paths of a file as they can be opened."""
    for row, path in enumerate(paths):
        if "://" in path:
            raise ExamplesError(f"{where(row)}: {path} is a URL; training reads local files only")
    base = root if root is not None else "" if file.parent == Path() else str(file.parent)
    relative = next((path for path in paths if not os.path.isabs(path)), None)
    if root is None and relative is not None and not os.path.exists(os.path.join(base, relative)):
        base = "" if os.path.exists(relative) else base
    return [os.path.join(base, path) for path in paths]
