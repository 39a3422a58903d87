"""Safetensors files: whole ones read back exactly, headers that lie or say a thing twice."""

import json
import struct

import hypothesis
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save

from convert.errors import ConversionError
from convert.source import open_source
from convert.weights import read_weights
from tests.folders import write_folder

PROJECTION = "videomae.embeddings.patch_embeddings.projection"
DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "folder")


def problem(path) -> str:
    with pytest.raises(ConversionError) as caught:
        open_source(path)
    (problem,) = caught.value.problems
    assert problem.isprintable()
    return problem


NAMES = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20)
SHAPES = st.lists(st.integers(0, 4), max_size=4)
HEADERS = st.dictionaries(NAMES, st.tuples(st.sampled_from(sorted(DTYPES)), SHAPES), max_size=8)


@hypothesis.given(headers=HEADERS, draw=st.randoms(use_true_random=False))
def test_any_whole_file_is_read_back_exactly(tmp_path_factory, headers, draw):
    """Tensors in any order in the header, in any order in the file."""
    path = tmp_path_factory.mktemp("any") / "model.safetensors"
    arrays, header, data = {}, {}, b""
    for name in draw.sample(sorted(headers), len(headers)):
        dtype, shape = headers[name]
        size = int(np.prod(shape, dtype=int)) * np.dtype(DTYPES[dtype]).itemsize
        content = bytes(draw.randrange(2 if dtype == "BOOL" else 256) for _ in range(size))
        arrays[name] = np.frombuffer(content, DTYPES[dtype]).reshape(shape)
        offsets = [len(data), len(data) + size]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        data += content
    shuffled = {name: header[name] for name in draw.sample(sorted(header), len(header))}
    write_parts(path, shuffled, data)
    tensors = read_weights(path).tensors
    assert set(tensors) == set(headers)
    for name, tensor in tensors.items():
        assert (tensor.dtype, list(tensor.shape)) == headers[name]
        values = tensor.read()
        assert values.dtype == arrays[name].dtype
        assert values.shape == arrays[name].shape
        # Bytes, for NaN is not equal to itself.
        assert values.tobytes() == arrays[name].tobytes()


def parts_of(path) -> tuple[dict, bytes]:
    content = path.read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8:end]), content[end:]


def write_parts(path, header, data, *, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 100, 3000, -4096, -1])
def test_a_truncated_file(folder, kept):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:kept])
    assert 0 <= len(path.read_bytes()) < len(content)
    text = problem(folder)
    assert text.startswith(f"{path}: not a readable safetensors file (")
    assert text.endswith("; download it again")


def lie_about_offsets(header):
    header[f"{PROJECTION}.bias"]["data_offsets"][1] += 10**15


def lie_about_a_shape(header):
    header[f"{PROJECTION}.bias"]["shape"] = [10**15]


def overlap(header):
    header[f"{PROJECTION}.bias"]["data_offsets"] = header["fc_norm.bias"]["data_offsets"]


def name_an_unknown_dtype(header):
    header[f"{PROJECTION}.bias"]["dtype"] = "F31"


def give_negative_offsets(header):
    header[f"{PROJECTION}.bias"]["data_offsets"] = [-96, 0]


def leave_a_hole(header):
    for entry in header.values():
        entry["data_offsets"] = [2 * offset for offset in entry["data_offsets"]]
        entry["shape"] = [*entry["shape"], 2]
    first = next(iter(header.values()))
    first["data_offsets"][1] -= 4


def turn_offsets_around(header):
    header[f"{PROJECTION}.bias"]["data_offsets"].reverse()


def leave_offsets_out(header):
    del header[f"{PROJECTION}.bias"]["data_offsets"]


def lose_a_tensor(header):
    del header[f"{PROJECTION}.bias"]


LIES = [
    lie_about_offsets,
    lie_about_a_shape,
    overlap,
    name_an_unknown_dtype,
    give_negative_offsets,
    leave_a_hole,
    turn_offsets_around,
    leave_offsets_out,
    lose_a_tensor,
]


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_does_not_fit_the_file(folder, lie):
    path = folder / "model.safetensors"
    header, data = parts_of(path)
    lie(header)
    write_parts(path, header, data)
    assert problem(folder).startswith(f"{path}: not a readable safetensors file (")


@pytest.mark.parametrize("length", [0, 1, 10**6, 2**40, 2**63, 2**64 - 1])
def test_a_header_length_that_lies(folder, length):
    path = folder / "model.safetensors"
    write_parts(path, *parts_of(path), length=length)
    assert problem(folder).startswith(f"{path}: not a readable safetensors file (")


@pytest.mark.parametrize("header", [b"not JSON at all", b"[1]", b"\xff\xfe\xfd", b'{"x": 1}'])
def test_a_header_that_is_no_header(folder, header):
    path = folder / "model.safetensors"
    write_parts(path, header, b"")
    assert problem(folder).startswith(f"{path}: not a readable safetensors file (")


@pytest.mark.parametrize("other", [{}, {"shape": [2, 1]}, {"dtype": "I32"}])
def test_a_tensor_twice(folder, other):
    path = folder / "model.safetensors"
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    header = f'{{"x": {json.dumps(entry)}, "x": {json.dumps(entry | other)}}}'.encode()
    write_parts(path, header, bytes(8))
    assert problem(folder) == (
        f"{path}: not a readable safetensors file (key 'x' twice in one object); download it again"
    )


def test_a_header_that_is_longer_than_any(folder):
    path = folder / "model.safetensors"
    header, data = parts_of(path)
    write_parts(path, json.dumps(header).encode() + b" " * 2**22, data)
    assert "(a header of " in problem(folder)


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2J", "\u2028", "\ud800"])
def test_a_tensor_without_a_plain_name(folder, name):
    path = folder / "model.safetensors"
    header, data = parts_of(path)
    header[name] = header.pop("fc_norm.bias")
    write_parts(path, header, data)
    assert problem(folder).startswith(f"{path}: not a readable safetensors file (a tensor named '")


def test_the_suffix_may_be_in_capitals(tmp_path):
    path = tmp_path / "MODEL.SAFETENSORS"
    path.write_bytes(save({"x": np.ones(2, np.float32)}))
    assert set(open_source(path).tensors) == {"x"}


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [
        ("F4", [4], 2),
        ("F6_E2M3", [4], 3),
        ("F8_E4M3", [2], 2),
        ("F32", [0, 2**40, 2**40], 0),
        ("F32", [1] * 99, 4),
    ],
)
def test_what_numpy_lacks_is_refused_when_read(tmp_path, dtype, shape, size):
    path = tmp_path / "model.safetensors"
    entry = {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}
    write_parts(path, {"x": entry}, bytes(size))
    tensor = read_weights(path).tensors["x"]
    with pytest.raises(ConversionError) as caught:
        tensor.read()
    assert str(caught.value).startswith(f"{path}: x {shape} can't be read as {dtype} (")


def test_a_file_truncated_at_any_byte(tmp_path):
    path = tmp_path / "model.safetensors"
    content = save({"a": np.arange(3, dtype=np.float32), "b": np.ones((2, 2), np.float16)})
    for size in range(len(content)):
        path.write_bytes(content[:size])
        assert problem(path).startswith(f"{path}: not a readable safetensors file (")
    path.write_bytes(content)
    assert set(open_source(path).tensors) == {"a", "b"}
