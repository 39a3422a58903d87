"""What a table says, as one digest, however Arrow keeps it in memory.

Hashed are the columns' names, their types under names of our own, and their values in a layout of
our own: which are null, then the others, numbers as little-endian bytes, of strings and lists all
lengths and then all contents. Rows are taken in blocks of a fixed number. So neither chunks, nor
slices, nor what lies under a null, nor how a release of pyarrow prints a type has a say.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

BLOCK = 65_536


def table_digest(table: Any, *context: str) -> str:
    """The SHA-256, in hexadecimal, of a pyarrow table in order, and of further words."""
    digest = hashlib.sha256()
    names = [[field.name, type_name(field.type)] for field in table.schema]
    head = json.dumps(["table 1", table.num_rows, names, context], ensure_ascii=True)
    digest.update(f"{len(head)} {head}".encode())
    for column in table.columns:
        for start in range(0, len(column), BLOCK):
            for part in _parts(_as_array(column.slice(start, BLOCK))):
                digest.update(part)
    return digest.hexdigest()


def type_name(kind: Any) -> str:
    """A name for an Arrow type that says what its values are, not how they are kept."""
    import pyarrow.types as types

    if types.is_fixed_size_list(kind):
        return f"list[{kind.list_size}]<{type_name(kind.value_type)}>"
    if types.is_list(kind):
        return f"list<{type_name(kind.value_type)}>"
    if types.is_struct(kind):
        fields = [[field.name, type_name(field.type)] for field in kind.fields]
        return f"struct<{json.dumps(fields)}>"
    if types.is_map(kind):
        return f"map<{type_name(kind.key_type)}, {type_name(kind.item_type)}>"
    return str(kind)


def _as_array(column: Any) -> Any:
    """One array of a column's chunks."""
    whole = column.combine_chunks()
    # Some releases of pyarrow answer with chunks again.
    return whole.combine_chunks() if hasattr(whole, "chunks") else whole


def _parts(array: Any) -> Iterator[Any]:
    """The bytes of an array of a normal type (see `tables.normal_type`)."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.types as types

    yield len(array).to_bytes(8, "little")
    if array.null_count:
        yield from _numbers(array.is_valid().cast(pa.uint8()))
        array = array.drop_null()
    kind = array.type
    if not len(array):
        return
    if types.is_boolean(kind):
        yield from _numbers(array.cast(pa.uint8()))
    elif types.is_string(kind) or types.is_binary(kind):
        yield from _numbers(pc.binary_length(array).cast(pa.int64()))
        _, offsets, content = array.buffers()
        if content is not None:
            places = memoryview(offsets).cast("i")
            yield memoryview(content)[places[array.offset] : places[array.offset + len(array)]]
    elif types.is_fixed_size_list(kind) or types.is_list(kind):
        if types.is_list(kind):
            yield from _numbers(pc.list_value_length(array).cast(pa.int64()))
        yield from _parts(array.flatten())
    elif types.is_struct(kind):
        for field in array.flatten():
            yield from _parts(field)
    elif types.is_primitive(kind) or types.is_decimal(kind) or types.is_fixed_size_binary(kind):
        yield from _numbers(array)
    else:
        yield json.dumps(array.to_pylist(), default=str).encode()


def _numbers(array: Any) -> Iterator[Any]:
    width = array.type.bit_width // 8
    start = array.offset * width
    yield memoryview(array.buffers()[1])[start : start + len(array) * width]
