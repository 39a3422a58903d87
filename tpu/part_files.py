"""Rows <-> the bytes of one part: Parquet, or JSON lines."""

import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa


def write_part(rows: Sequence[Mapping[str, Any]], schema: "pa.Schema", format: str) -> bytes:
    """The rows, with the schema's columns in its order; `format` is "parquet" or "jsonl"."""
    if format == "jsonl":
        lines = (json.dumps(_plain(row, schema), ensure_ascii=False) for row in rows)
        return "".join(f"{line}\n" for line in lines).encode()
    import pyarrow as pa

    return _parquet(pa.Table.from_pylist(list(rows), schema=schema))


def _parquet(table: "pa.Table") -> bytes:
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def read_rows(content: bytes, format: str) -> tuple[np.ndarray, int]:
    """(the numbers of the rows in a part, how many hold an error).

    Raises:
        ValueError: for what is no such part.
    """
    if format == "jsonl":
        # As bytes: a text has more ends of lines than JSON escapes, U+2028 for one.
        rows = [json.loads(line) for line in content.splitlines()]
        numbers = np.array([row["row"] for row in rows], np.int64)
        return numbers, sum(row["error"] is not None for row in rows)
    import pyarrow.parquet as pq

    # pyarrow's errors are ValueErrors.
    table = pq.read_table(io.BytesIO(content), columns=["row", "error"])
    return table["row"].to_numpy(), len(table) - table["error"].null_count


def without_errors(content: bytes, format: str, limit: int) -> tuple[bytes, np.ndarray, np.ndarray]:
    """A part without its rows below `limit` that hold an error.

    Returns (that part, the numbers of its rows, ascending, those of the rows that went).
    """
    if format == "jsonl":
        lines = [(json.loads(line), line) for line in content.splitlines(keepends=True)]
        numbers = np.array([row["row"] for row, _ in lines], np.int64)
        bad = np.array([row["error"] is not None for row, _ in lines]) & (numbers < limit)
        left = b"".join(line for (_, line), goes in zip(lines, bad, strict=True) if not goes)
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pq.read_table(io.BytesIO(content))
        numbers = table["row"].to_numpy()
        bad = table["error"].is_valid().to_numpy() & (numbers < limit)
        left = _parquet(table.filter(pa.array(~bad)))
    return left, np.sort(numbers[~bad]), numbers[bad]


def _plain(row: Mapping[str, Any], schema: "pa.Schema") -> dict[str, Any]:
    """What JSON can say of a row: times as text, bytes as text where they are UTF-8.

    What is no number, or has no end, is null.
    """
    return {name: _plain_value(row.get(name)) for name in schema.names}


def _plain_value(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _plain_value(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_value(each) for each in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
