"""Bytes of a text, CSV or Parquet file -> an Arrow table whose types are plain ones.

Of CSV, which has no types, a column is int64 or float64 where reading it as one loses nothing but
zeros behind a point; text else: "007" and what has more than 18 digits are no numbers, but names.
"""

import codecs
from collections.abc import Sequence
from typing import Any

from videomae_jax.command import one_line

DELIMITERS = {".csv": ",", ".tsv": "\t"}
WHOLE = r"^(0|-?[1-9][0-9]{0,17})$"
DECIMAL = r"^-?(0|[1-9][0-9]{0,14})(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?$"
# Rows of what a table is cast by: the strings of so many fit into one array.
PORTION = 1 << 20


class TableError(ValueError):
    """What is wrong with a file's content, in one line without the file's name."""


def text_table(content: bytes) -> Any:
    """A column `path` with the lines of a text, without the blank ones; spaces are kept.

    Raises:
        TableError: for what is not UTF-8, or not text.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    if b"\0" in content:
        raise TableError("is no text (it holds a byte 0); give one path a line, in UTF-8")
    # A line is a string as it lies there, with its end; no Python object is made of it.
    start = len(codecs.BOM_UTF8) * content.startswith(codecs.BOM_UTF8)
    ends = np.flatnonzero(np.frombuffer(content, np.uint8) == ord("\n")) + 1
    if not content.endswith(b"\n"):
        ends = np.append(ends, len(content))
    places = pa.py_buffer(np.insert(ends, 0, start).astype(np.int64))
    buffers = [None, places, pa.py_buffer(content)]
    lines = pa.Array.from_buffers(pa.large_binary(), len(ends), buffers)
    try:
        paths = pc.utf8_rtrim(lines.cast(pa.large_string()), characters="\r\n")
    except pa.ArrowInvalid as error:
        raise _unreadable(content, error) from error
    return normal_table(pa.table({"path": paths.filter(pc.match_substring_regex(paths, r"\S"))}))


def csv_table(content: bytes, delimiter: str) -> Any:
    """The table of a CSV file with a header.

    Raises:
        TableError: for what is not UTF-8, or has rows of different lengths.
    """
    import pyarrow as pa
    from pyarrow import csv

    if not content.strip():
        raise TableError("is empty; give it a header and rows")
    parse = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    names = _header(content, parse)
    check_names(names)
    convert = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
    try:
        table = csv.read_csv(pa.BufferReader(content), None, parse, convert)
    except pa.ArrowException as error:
        raise _unreadable(content, error) from error
    columns = [table[name] if name == "path" else _typed(table[name]) for name in names]
    return pa.table(dict(zip(names, columns, strict=True)))


def parquet_table(source: Any, limit: int | None = None) -> Any:
    """The table of a Parquet file, a path or an open file; row groups past `limit` are not read.

    Raises:
        TableError: for what is no such file, or has columns that can't be told apart.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(source) as file:
            check_names(file.schema_arrow.names)
            return normal_table(file.read_row_groups(_groups(file.metadata, limit)))
    except (pa.ArrowException, OSError) as error:
        raise TableError(f"is no Parquet file that can be read ({one_line(error)})") from error


def check_names(names: Sequence[str]) -> None:
    """Raise TableError for a column without a name, or two that differ in case at most.

    DuckDB and Spark, which read the results, take those for one.
    """
    if "" in names:
        column = names.index("") + 1
        raise TableError(f"column {column} has no name; name it, or leave out the index")
    lower = [name.lower() for name in names]
    twice = next((name for name in names if lower.count(name.lower()) > 1), None)
    if twice is not None:
        raise TableError(f"has several columns `{twice}`; rename all but one")


def normal_table(table: Any) -> Any:
    """The same values without what is a matter of storage: dictionaries, sizes of offsets."""
    import pyarrow as pa

    columns = [_storage(column) for column in table.columns]
    table = pa.table(columns, names=table.column_names)
    schema = pa.schema([(field.name, normal_type(field.type)) for field in table.schema])
    if table.schema == schema:
        return table
    return pa.Table.from_batches(table.to_batches(PORTION), table.schema).cast(schema)


def normal_type(kind: Any) -> Any:
    """The plain type for the same values."""
    import pyarrow as pa
    import pyarrow.types as types

    if types.is_dictionary(kind):
        return normal_type(kind.value_type)
    if types.is_large_string(kind) or types.is_string_view(kind):
        return pa.string()
    if types.is_large_binary(kind) or types.is_binary_view(kind):
        return pa.binary()
    if types.is_fixed_size_list(kind):
        return pa.list_(normal_type(kind.value_type), kind.list_size)
    if types.is_list(kind) or types.is_large_list(kind):
        return pa.list_(normal_type(kind.value_type))
    if types.is_struct(kind):
        return pa.struct([(field.name, normal_type(field.type)) for field in kind.fields])
    if types.is_map(kind):
        return pa.map_(normal_type(kind.key_type), normal_type(kind.item_type))
    return kind


def _storage(column: Any) -> Any:
    """A column of an extension type as what it is kept as."""
    import pyarrow as pa

    if not isinstance(column.type, pa.BaseExtensionType):
        return column
    kind = column.type.storage_type
    return pa.chunked_array([chunk.storage for chunk in column.chunks], kind)


def _groups(metadata: Any, wanted: int | None) -> list[int]:
    """The first row groups that hold as many rows as wanted."""
    groups: list[int] = []
    rows = 0
    for group in range(metadata.num_row_groups):
        if wanted is not None and rows >= wanted:
            break
        groups.append(group)
        rows += metadata.row_group(group).num_rows
    return groups


def _header(content: bytes, parse: Any) -> list[str]:
    import pyarrow as pa
    from pyarrow import csv

    try:
        with csv.open_csv(pa.BufferReader(content), parse_options=parse) as reader:
            return list(reader.schema.names)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise _unreadable(content, error) from error


def _unreadable(content: bytes, error: Exception) -> TableError:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as where:
        line = content.count(b"\n", 0, where.start) + 1
        return TableError(f"is not UTF-8 (line {line}); save it as UTF-8")
    return TableError(f"can't be parsed ({one_line(error)})")


def _typed(column: Any) -> Any:
    """A column of text as numbers, its empty values as nulls, where nothing else is in it."""
    import pyarrow as pa
    import pyarrow.compute as pc

    filled = pc.not_equal(column, "")
    values = column.filter(filled)
    for pattern, kind in ((WHOLE, pa.int64()), (DECIMAL, pa.float64())):
        if len(values) and pc.all(pc.match_substring_regex(values, pattern)).as_py():
            return pc.if_else(filled, column, pa.scalar(None, pa.string())).cast(kind)
    return column
