"""Opening what a user hands over: folders, shards, JSON files, damaged headers."""

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


@pytest.fixture
def hub(tmp_path):
    """Turns a folder into links, as the hub's cache keeps it: names without suffixes in blobs/."""

    def link(folder):
        blobs, snapshot = tmp_path / "cache" / "blobs", tmp_path / "cache" / "snapshots" / "abc"
        blobs.mkdir(parents=True)
        snapshot.mkdir(parents=True)
        for number, file in enumerate(sorted(folder.iterdir())):
            file.rename(blobs / f"{number:064x}")
            (snapshot / file.name).symlink_to(f"../../blobs/{number:064x}")
        return snapshot

    return link


@pytest.mark.parametrize("sharded", [False, True])
def test_links_into_the_cache_of_the_hub(folder, hub, sharded):
    if sharded:
        shard(folder)
    write_json(folder / "preprocessor_config.json", {})
    snapshot = hub(folder)
    source = open_source(snapshot)
    assert source.config["model_type"] == "videomae"
    assert source.preprocessor_file == snapshot / "preprocessor_config.json"
    assert {file.parent for file in source.files} == {snapshot}
    assert {file.suffix for file in source.files} == {".safetensors"}
    for name, array in random_tensors().items():
        np.testing.assert_array_equal(source.tensors[name].read(), array)
    assert open_source(source.files[0]).files == source.files[:1]


def test_safetensors_have_no_averaged_weights(folder):
    file = folder / "model.safetensors"
    with pytest.raises(ConversionError) as caught:
        open_source(folder, weights="ema")
    assert caught.value.problems == (
        f"{file}: a safetensors file has no averaged weights beside the others; leave out "
        f"--weights ema",
    )


@pytest.mark.parametrize(
    ("name", "what"), [("config.json", "a config"), ("preprocessor_config.json", "a JSON file")]
)
def test_a_config_in_place_of_its_folder(folder, name, what):
    write_json(folder / "preprocessor_config.json", {})
    assert problem(folder / name) == (
        f"{folder / name}: is {what}, no weights; give its folder: {folder}"
    )


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
        (b'{"a": 1, "b": {"x": 1, "y": 2, "x": 1}}', "not valid JSON (key 'x' twice in one"),
        (b'{"a": 9223372036854775808}', "not valid JSON (92233720368547758, a number of 19 digits"),
        (b'{"a": -9007199254740993}', "not valid JSON (-9007199254740993, a number of 17"),
        (b'{"a": "' + b"x" * 2**22 + b'"}', "not valid JSON (longer than 4194304 bytes)"),
    ],
)
def test_a_json_file_that_holds_no_object(tmp_path, content, text):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ConversionError) as caught:
        read_json(path)
    assert caught.value.problems[0].startswith(f"{path}: {text}")


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
