"""MANIFEST -> the table of videos: what there is to do, in which order, and where each lies.

A manifest is a folder, a glob, a text file with one path a line, a CSV or Parquet file (or Parquet
files, by a folder or a glob) with a column `path`, or one video; here or on anything that fsspec
opens. A listing of a bucket takes time and memory: for millions of videos write them down once.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tpu.files import retried
from tpu.listing import files_in, files_like, folder_of_glob, is_glob
from tpu.locations import (
    ABSOLUTE,
    URL,
    LocationError,
    absolute,
    as_local,
    check_scheme,
    filesystem,
    folder_of,
    is_url,
    join,
    schemes_of,
    suffix_of,
)
from tpu.table_digest import table_digest
from videomae_jax.command import one_line
from videomae_jax.containers import VIDEO_SUFFIXES
from videomae_jax.tables import (
    DELIMITERS,
    TableError,
    csv_table,
    normal_table,
    parquet_table,
    text_table,
)

# The columns of the results, beside `path` and those that pass through.
RESULT_COLUMNS = frozenset(
    "row indices labels probabilities embedding frames duration_s decode_s retries error".split()
)


class ManifestError(ValueError):
    """A manifest that no job can be made of; one line that names it and the mend."""


@dataclass(frozen=True)
class Manifest:
    """The videos of a job, which are known by their row numbers: paths may repeat.

    `table` is a pyarrow Table: a column `path` of strings as the manifest has them, then those that
    pass through. `root` is what relative paths are meant from. `digest` is the SHA-256 over the
    table and the root: two manifests of the same digest name the same videos in the same order.
    """

    table: Any
    root: str
    digest: str

    def __len__(self) -> int:
        return self.table.num_rows

    def location(self, row: int) -> str:
        """What to open for a row: an absolute path or a URL."""
        return join(self.root, self.table["path"][row].as_py())


def read_manifest(source: str, *, root: str | None = None, limit: int | None = None) -> Manifest:
    """Read a manifest, of which only the first `limit` rows count if that is given.

    Relative paths in a file are meant from `root`, by default the folder that the file lies in;
    those of a folder or a glob from the current directory. No video is looked for: a row whose
    video is missing is a row with an error.

    Raises:
        ManifestError: for what is missing or can't be read, has no rows, no column `path`, a row
            without a path, or columns that the results can't have. A ValueError.
    """
    if limit is not None and limit < 1:
        raise ManifestError(f"the limit must be at least 1, got {limit}")
    with _one_line_errors(source):
        given = None if root is None else absolute(root)
        # Hundreds of hosts may read it at once, which a bucket may refuse for a moment.
        (table, base), _ = retried(lambda: _rows(source, given, limit))
        table = _checked(table.slice(0, limit))
        _check_schemes(table["path"], base)
        if root is None and not is_url(base):
            _check_root(table["path"], base)
    return Manifest(table=table, root=base, digest=table_digest(table, base))


@contextlib.contextmanager
def _one_line_errors(source: str) -> Iterator[None]:
    try:
        yield
    except LocationError as error:
        raise ManifestError(" ".join(str(error).split())) from error
    except TableError as error:
        raise ManifestError(" ".join(f"{source}: {error}".split())) from error
    except FileNotFoundError as error:
        raise ManifestError(f"{source}: doesn't exist; check the path") from error
    except UnicodeEncodeError as error:
        name = os.fsencode(error.object)
        raise ManifestError(f"{source}: {name} is no name in UTF-8; rename it") from error
    except ModuleNotFoundError as error:
        mend = "pip install 'videomae-jax[batch]'"
        raise ManifestError(f"{source}: {error.name} is not installed; {mend}") from error
    # A bucket's library has errors of its own: no rights, no such bucket, no network.
    except Exception as error:
        trouble = f"{type(error).__name__}: {one_line(error)}"
        raise ManifestError(f"{source}: can't be read ({trouble})") from error


def _rows(source: str, root: str | None, limit: int | None) -> tuple[Any, str]:
    """The table of a manifest as it stands there, and what its paths are relative to."""
    kind, suffix = _kind(source), suffix_of(source)
    if kind == "file" and suffix not in VIDEO_SUFFIXES:
        return _listed(source, suffix, limit), root or folder_of(source)
    if kind == "folder":
        found = files_in(source, VIDEO_SUFFIXES)
        tables = [] if len(found) else files_in(source, {".parquet"}).to_pylist()
    else:
        found = files_like(source) if kind == "glob" else None
        tables = found.to_pylist() if found is not None and suffix == ".parquet" else []
    if tables:
        folder = source if kind == "folder" else folder_of_glob(source)
        return _parquet(tables, limit), root or absolute(folder)
    if root is not None:
        raise TableError("is no list of paths, so that nothing in it is relative to --root")
    return _found(source, found), "" if is_url(source) or os.path.isabs(source) else os.getcwd()


def _listed(source: str, suffix: str, limit: int | None) -> Any:
    """The table that a file holds."""
    if suffix == ".parquet":
        return _parquet([source], limit)
    with _opened(source) as file:
        content = file.read()
    if suffix in DELIMITERS:
        return csv_table(content, DELIMITERS[suffix])
    return text_table(content)


def _found(source: str, found: Any | None) -> Any:
    """The table of files that a folder or a glob stands for; None for the source itself."""
    import pyarrow as pa

    if found is None:
        found = pa.array([source])
    if not len(found):
        raise TableError("has no videos; give a folder, a glob or a list of some")
    return normal_table(pa.table({"path": found}))


def _kind(source: str) -> str:
    """What stands at a location: "folder", "file", or "glob" for nothing that has wildcards."""
    local = as_local(source)
    try:
        if local is None:
            system, path = filesystem(source)
            return "folder" if system.info(path)["type"] == "directory" else "file"
        os.stat(local)
        return "folder" if os.path.isdir(local) else "file"
    except FileNotFoundError:
        if is_glob(source):
            return "glob"
        raise


@contextlib.contextmanager
def _opened(source: str) -> Iterator[Any]:
    local = as_local(source)
    if local is not None:
        with open(local, "rb") as file:
            yield file
        return
    system, path = filesystem(source)
    with system.open(path, "rb") as file:
        yield file


def _parquet(sources: list[str], limit: int | None) -> Any:
    """The rows of Parquet files, one after the other, as far as `limit` asks for them."""
    import pyarrow as pa

    tables: list[Any] = []
    wanted = limit
    for source in sources:
        if wanted is not None and wanted <= 0:
            break
        try:
            with _opened(source) as file:
                table = parquet_table(file, wanted)
        except TableError as error:
            if len(sources) == 1:
                raise
            raise TableError(f"{source} {error}") from error
        if tables and table.schema != tables[0].schema:
            raise TableError(f"{source} has other columns than {sources[0]}; make them alike")
        tables.append(table)
        wanted = None if wanted is None else wanted - table.num_rows
    return pa.concat_tables(tables)


def _checked(table: Any) -> Any:
    """The table with `path` as its first column."""
    import pyarrow as pa
    import pyarrow.compute as pc

    names = table.column_names
    if "path" not in names:
        there = ", ".join(names[:20]) + ", ..." * (len(names) > 20)
        raise TableError(f"has no column `path` (but {there}); name the one with the videos so")
    taken = [name for name in names if name.lower() in RESULT_COLUMNS]
    if taken:
        raise TableError(f"column `{taken[0]}` would stand in the results twice; rename it")
    if table["path"].type != pa.string():
        raise TableError(f"column `path` must be text, is {table['path'].type}")
    if not table.num_rows:
        raise TableError("has no rows")
    good = pc.fill_null(pc.match_substring_regex(table["path"], r"^[^\0]*[^\0\s][^\0]*$"), False)
    row = pc.index(good, False).as_py()
    if row >= 0:
        found = table["path"][row].as_py()
        raise TableError(f"row {row} (the first is 0) has no path but {found!r}")
    return table.select(["path", *(name for name in names if name != "path")])


def _check_schemes(paths: Any, root: str) -> None:
    """Raise LocationError if what opens the URLs of a table is not installed: all would fail."""
    import pyarrow.compute as pc

    urls = paths.filter(pc.match_substring_regex(paths, URL))
    found = pc.struct_field(pc.extract_regex(urls, f"(?P<url>{URL})"), "url")
    for url in (root, *pc.unique(found).to_pylist()):
        for scheme in schemes_of(url):
            check_scheme(scheme)


def _check_root(paths: Any, root: str) -> None:
    """Refuse paths that are meant from the current directory, not from where the manifest lies."""
    import pyarrow.compute as pc

    row = pc.index(pc.match_substring_regex(paths, ABSOLUTE), False).as_py()
    if row < 0:
        return
    path = paths[row].as_py()
    if not os.path.exists(os.path.join(root, path)) and os.path.exists(path):
        raise TableError(f"{path} is not in {root} but in the current directory; say --root .")
