"""The digest depends on what a table says and on nothing else."""

import datetime
import decimal
import struct
from hashlib import sha256

import hypothesis
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import strategies as st

from tpu import table_digest as module
from tpu.table_digest import table_digest
from videomae_jax.tables import normal_table, normal_type

WORDS = st.one_of(st.none(), st.text(max_size=4))
ROWS = st.lists(
    st.tuples(WORDS, st.one_of(st.none(), st.integers(-3, 3)), st.one_of(st.none(), st.booleans())),
    max_size=12,
)


def table_of(rows):
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    kinds = (pa.string(), pa.int64(), pa.bool_())
    arrays = [pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
    return pa.table(arrays, names=["path", "number", "flag"])


def everything():
    """A table with a column of every kind that passes through."""
    day = datetime.date(2024, 2, 29)
    return pa.table(
        {
            "path": ["a.mp4", "b.mp4", "ü.mp4"],
            "int8": pa.array([1, None, -1], pa.int8()),
            "float32": pa.array([0.5, None, 2.0], pa.float32()),
            "bool": [True, None, False],
            "bytes": [b"\0", None, b""],
            "date": [day, None, day],
            "time": pa.array([1, None, 2], pa.timestamp("us", "UTC")),
            "decimal": [decimal.Decimal("1.50"), None, decimal.Decimal("0.00")],
            "list": [["x", None], None, []],
            "pair": pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32(), 2)),
            "struct": [{"x": 1, "y": "one"}, None, {"x": None, "y": "two"}],
            "map": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int32())),
            "fixed": pa.array([b"ab", None, b"cd"], pa.binary(2)),
            "null": pa.nulls(3),
        }
    )


def test_it_stays_what_it_was():
    # Frozen: a job that was begun with another release of pyarrow, or of this, goes on with it.
    frozen = "8e6d19d6943ac33d0ffc292fd3179efd017ec64a77b2b71307fb4baf30af5969"
    assert table_digest(normal_table(everything()), "/data") == frozen


def test_it_is_the_sum_of_the_layout_that_it_says():
    head = b'["table 1", 2, [["path", "string"], ["n", "int16"]], ["/data"]]'
    lengths, content = struct.pack("<2q", 1, 2), b"abc"
    numbers = struct.pack("<2B", 0, 1) + struct.pack("<h", 7)
    count = struct.pack("<q", 2)
    expected = b"%d %s" % (len(head), head) + count + lengths + content + count + numbers
    table = pa.table({"path": ["a", "bc"], "n": pa.array([None, 7], pa.int16())})
    assert table_digest(table, "/data") == sha256(expected).hexdigest()


@pytest.mark.parametrize("column", everything().column_names)
def test_every_kind_of_column_counts(column):
    table = everything()
    before = table_digest(normal_table(table))
    if column == "null":
        changed = table.drop_columns([column])
    else:
        place = table.column_names.index(column)
        mixed = table[column].take(pa.array([2, 0, 1]))
        changed = table.set_column(place, column, mixed)
    assert table_digest(normal_table(changed)) != before


@hypothesis.given(ROWS, st.integers(1, 5), st.integers(0, 3))
def test_how_a_table_is_kept_does_not_count(rows, chunk, extra):
    plain = table_of(rows)
    # Chunks, a slice of something longer, and other layouts of the same strings.
    longer = pa.concat_tables([table_of([("junk", 9, True)] * extra), plain])
    kept = longer.slice(extra)
    kept = pa.Table.from_batches(kept.to_batches(chunk), kept.schema)
    assert table_digest(longer.combine_chunks().slice(extra)) == table_digest(plain)
    assert table_digest(kept) == table_digest(plain)
    for kind in (pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.string_view()):
        again = kept.set_column(0, "path", kept["path"].cast(kind))
        assert table_digest(normal_table(again)) == table_digest(plain)


@pytest.mark.parametrize(
    ("stored", "normal"),
    [
        (pa.large_binary(), pa.binary()),
        (pa.large_list(pa.field("element", pa.large_string())), pa.list_(pa.string())),
        (pa.list_(pa.field("x", pa.large_string()), 2), pa.list_(pa.string(), 2)),
        (pa.struct({"x": pa.large_string()}), pa.struct({"x": pa.string()})),
        (pa.map_(pa.large_string(), pa.large_binary()), pa.map_(pa.string(), pa.binary())),
        (pa.dictionary(pa.int8(), pa.large_string()), pa.string()),
    ],
)
def test_types_inside_of_types_are_plain_too(stored, normal):
    assert normal_type(stored) == normal
    table = pa.table({"x": pa.nulls(1, stored)})
    assert normal_table(table).schema == pa.schema({"x": normal})


@hypothesis.given(ROWS, ROWS)
def test_other_rows_have_another_digest(rows, others):
    alike = table_digest(table_of(rows)) == table_digest(table_of(others))
    assert alike == (rows == others)


def test_what_lies_under_a_null_does_not_count():
    hidden = pa.Array.from_buffers(
        pa.int32(), 2, [pa.py_buffer(b"\1"), pa.py_buffer(struct.pack("<2i", 5, 99))]
    )
    assert hidden.to_pylist() == [5, None]
    plain = pa.table({"n": pa.array([5, None], pa.int32())})
    assert table_digest(pa.table({"n": hidden})) == table_digest(plain)


@pytest.mark.parametrize("column", everything().column_names)
def test_a_slice_is_what_it_shows(column):
    # Whether pyarrow copies a slice when it joins chunks is its own affair.
    array = normal_table(everything())[column].combine_chunks()
    for start in range(3):
        alone = pa.array(array[start:].to_pylist(), array.type)
        parts = [b"".join(module._parts(each)) for each in (array[start:], alone)]
        assert parts[0] == parts[1]


def test_it_goes_by_blocks(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 2)
    table = everything()
    expected = table_digest(normal_table(table))
    pieces = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert table_digest(normal_table(pieces)) == expected
    monkeypatch.setattr(module, "BLOCK", 3)
    assert table_digest(normal_table(table)) != expected


@pytest.mark.parametrize(
    "other",
    [
        pa.table({"b": [1], "path": ["x"]}),
        pa.table({"path": ["x"], "c": [1]}),
        pa.table({"path": ["x"], "b": pa.array([1], pa.int32())}),
        pa.table({"path": ["x"]}),
    ],
)
def test_names_types_and_order_count(other):
    assert table_digest(other) != table_digest(pa.table({"path": ["x"], "b": [1]}))


def test_the_further_words_count():
    table = pa.table({"path": ["x"]})
    assert len({table_digest(table, *words) for words in [(), ("a",), ("a", "b"), ("ab",)]}) == 4


@pytest.mark.parametrize("options", [{}, {"row_group_size": 1}, {"use_dictionary": False}])
def test_a_parquet_file_of_any_make_has_the_same(tmp_path, options):
    # Before 22, pyarrow could not read the null of a list of fixed length back.
    table = everything().drop_columns(["pair"])
    pq.write_table(table, tmp_path / "x.parquet", **options)
    again = pq.read_table(tmp_path / "x.parquet")
    assert table_digest(normal_table(again)) == table_digest(normal_table(table))
