"""Opening what a user hands over: folders, shards, JSON files, damaged headers."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from convert.errors import ConversionError
from convert.source import open_source, read_json
from convert.weights import read_safetensors
from tests.folders import random_tensors, write_folder, write_json

PROJECTION = "videomae.embeddings.patch_embeddings.projection"


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "folder")


def problem(path) -> str:
    with pytest.raises(ConversionError) as caught:
        open_source(path)
    (problem,) = caught.value.problems
    assert "\n" not in problem
    return problem


def shard(folder, *, parts=3):
    """Spread the weights of a folder over files with an index."""
    tensors = random_tensors()
    names = sorted(tensors)
    weight_map = {}
    for part in range(parts):
        file = f"model-{part + 1:05}-of-{parts:05}.safetensors"
        chosen = names[part::parts]
        save_file({name: tensors[name] for name in chosen}, folder / file)
        weight_map |= dict.fromkeys(chosen, file)
    (folder / "model.safetensors").unlink()
    write_index(folder, weight_map)
    return weight_map


def write_index(folder, weight_map):
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def test_a_folder_is_opened_without_reading_a_value(folder):
    tensors = random_tensors()
    source = open_source(folder)
    assert source.path == folder
    assert source.files == (folder / "model.safetensors",)
    assert (source.entry, source.ignored_entries) == (None, ())
    assert source.config["model_type"] == "videomae"
    assert source.preprocessor_file is None
    assert {name: tensor.shape for name, tensor in source.tensors.items()} == {
        name: array.shape for name, array in tensors.items()
    }
    assert {tensor.dtype for tensor in source.tensors.values()} == {"F32"}
    for name, array in tensors.items():
        np.testing.assert_array_equal(source.tensors[name].read(), array)


def test_a_file_finds_the_json_files_beside_it(folder):
    write_json(folder / "preprocessor_config.json", {})
    source = open_source(folder / "model.safetensors")
    assert source.config_file == folder / "config.json"
    assert source.preprocessor_file == folder / "preprocessor_config.json"


def test_the_newer_name_of_the_preprocessor_file_is_known(folder):
    write_json(folder / "video_preprocessor_config.json", {})
    assert open_source(folder).preprocessor_file.name == "video_preprocessor_config.json"
    write_json(folder / "preprocessor_config.json", {})
    assert open_source(folder).preprocessor_file.name == "preprocessor_config.json"


def test_safetensors_come_before_torch_files(folder):
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    assert open_source(folder).files == (folder / "model.safetensors",)


def test_shards_are_one_source(folder):
    weight_map = shard(folder)
    source = open_source(folder)
    assert [file.name for file in source.files] == sorted(set(weight_map.values()))
    assert set(source.tensors) == set(weight_map)
    for name, array in random_tensors().items():
        np.testing.assert_array_equal(source.tensors[name].read(), array)
    # The index itself will do, too.
    assert open_source(folder / "model.safetensors.index.json").files == source.files


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_precisions_are_read(tmp_path, dtype):
    path = tmp_path / "model.safetensors"
    array = np.arange(6).reshape(2, 3).astype(dtype)
    save_file({"x": array}, path)
    values = read_safetensors(path).tensors["x"].read()
    np.testing.assert_array_equal(values.astype(np.float32), np.arange(6).reshape(2, 3))


def test_a_missing_path(tmp_path):
    assert problem(tmp_path / "gone") == (
        f"{tmp_path / 'gone'} doesn't exist; give a Hugging Face folder or a .pth file"
    )


def test_a_path_that_is_neither_folder_nor_file():
    assert problem("/dev/null").startswith("/dev/null is neither folder nor file; give a ")


def test_a_folder_without_weights(tmp_path):
    text = problem(tmp_path)
    assert text.startswith(f"{tmp_path}: holds none of model.safetensors, model.safetensors.index")
    (tmp_path / "best.pth").touch()
    assert problem(tmp_path).endswith(f"; give the file itself: {tmp_path / 'best.pth'}")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"9" * 5000, "not valid JSON"),
        (b"[1]", "must hold a JSON object"),
        (b'"text"', "must hold a JSON object"),
    ],
)
def test_a_json_file_that_holds_no_object(tmp_path, content, text):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ConversionError, match=text) as caught:
        read_json(path)
    assert caught.value.problems[0].startswith(f"{path}: ")


def test_a_missing_config_is_named_when_asked_for(folder):
    (folder / "config.json").unlink()
    source = open_source(folder)
    with pytest.raises(ConversionError, match=f"which should be {folder / 'config.json'}"):
        _ = source.config


def test_a_missing_shard(folder):
    weight_map = shard(folder)
    missing = folder / sorted(set(weight_map.values()))[1]
    missing.unlink()
    index = folder / "model.safetensors.index.json"
    assert problem(folder) == f"{index}: its shard {missing.name} is missing; download it again"


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors"])
def test_a_shard_outside_the_folder(folder, name):
    write_index(folder, shard(folder) | {"x": name})
    assert problem(folder).endswith(f"index.json: names {name!r}, which is outside its folder")


@pytest.mark.parametrize(
    "name", [".", "..", "", "a\0b", "a\nb", "\ud800", "é" * 1000, 5, None, ["a"], {"a": 1}]
)
def test_a_shard_name_that_is_no_file(folder, name):
    write_index(folder, shard(folder) | {"x": name})
    assert "model.safetensors.index.json: " in problem(folder)


@pytest.mark.parametrize("content", [{}, {"weight_map": {}}, {"weight_map": [1]}])
def test_an_index_without_a_weight_map(folder, content):
    shard(folder)
    write_json(folder / "model.safetensors.index.json", content)
    assert problem(folder).endswith("index.json: has no weight_map")


def test_an_index_and_shards_that_differ(folder):
    weight_map = shard(folder)
    file = weight_map.pop("fc_norm.bias")
    write_index(folder, weight_map | {"fc_norm.scale": file})
    with pytest.raises(ConversionError) as caught:
        open_source(folder)
    index = folder / "model.safetensors.index.json"
    assert caught.value.problems == (
        f"{index}: doesn't list fc_norm.bias, which a shard holds",
        f"{index}: lists fc_norm.scale, which no shard holds",
    )


def test_a_tensor_in_two_shards(folder):
    weight_map = shard(folder)
    files = sorted(set(weight_map.values()))
    tensors = random_tensors()
    for file in files[:2]:
        chosen = {name for name, where in weight_map.items() if where == file}
        save_file({name: tensors[name] for name in chosen | {"fc_norm.bias"}}, folder / file)
    assert problem(folder) == f"{folder / files[1]}: holds fc_norm.bias, as another shard does"


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


@pytest.mark.parametrize(
    "lie",
    [lie_about_offsets, lie_about_a_shape, overlap, name_an_unknown_dtype, give_negative_offsets],
)
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
