"""Rows of a head: which are taken, what is refused, and that the names follow."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import videomae_jax as vm
from convert.errors import ConversionError
from convert.job import Request, convert
from convert.label_map import read_label_map
from tests.configs import TINY, random_clips
from tests.folders import (
    random_tensors,
    refusal,
    run,
    write_folder,
    write_json,
    write_mmaction2,
    write_names,
    write_original,
    write_v2_hub,
)

LABELS = Path(__file__).parents[2] / "shared" / "labels"
OVERRIDES = {"image_size": (12, 20), "num_frames": 6, "num_attention_heads": 2}
NAMES = [f"class {index}" for index in range(7)]
# Neither sorted nor one half of the seven.
ROWS = [5, 0, 3, 6]


@pytest.fixture
def rows(tmp_path):
    return write_json(tmp_path / "rows.json", ROWS)


# --- the list


def test_a_list_is_read_in_order(rows):
    assert read_label_map(rows) == (5, 0, 3, 6)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "not valid JSON (Expecting value"),
        ("[1, 2", "not valid JSON ("),
        ("[" * 100_000, "not valid JSON ("),
        ("[1" + "0" * 5000 + "]", "not valid JSON ("),
        ("[]", "takes no rows"),
        ("null", "must hold a JSON list"),
        ("3", "must hold a JSON list"),
        ('{"0": 1}', "must hold a JSON list"),
        ('"12"', "must hold a JSON list"),
        ("[0, -1]", "row numbers count from 0, got -1"),
        ("[0, true]", "row numbers count from 0, got True"),
        ("[0, 1.0]", "row numbers count from 0, got 1.0"),
        ("[0, NaN]", "row numbers count from 0, got nan"),
        ('[0, "1"]', "row numbers count from 0, got '1'"),
        ("[0, null]", "row numbers count from 0, got None"),
        ("[0, [1]]", "row numbers count from 0, got [1]"),
        ("[4, 1, 4]", "takes row 4 2 times"),
    ],
)
def test_what_is_no_list_of_rows(tmp_path, content, said):
    path = tmp_path / "rows.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConversionError) as caught:
        read_label_map(path)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{path}: {said}")
    assert "\n" not in problem
    assert len(problem) < len(str(path)) + 200


def test_what_can_not_be_read(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name, said in (
        ("missing", "can't be read (No such file or directory)"),
        (".", "can't be read (Is a directory)"),
        ("binary", "not valid JSON ('utf-8' codec can't decode byte 0xff"),
    ):
        with pytest.raises(ConversionError) as caught:
            read_label_map(tmp_path / name)
        assert caught.value.problems[0].startswith(f"{tmp_path / name}: {said}")


def test_a_long_entry_is_cut(tmp_path):
    with pytest.raises(ConversionError, match="row numbers count from 0, got ") as caught:
        read_label_map(write_json(tmp_path / "rows", [list(range(10_000))]))
    assert len(str(caught.value)) < len(str(tmp_path)) + 100


# --- the head

SOURCES = {
    "original": lambda at: (write_original(at / "in.safetensors"), "head"),
    "mmaction2": lambda at: (write_mmaction2(at / "in.safetensors"), "cls_head.fc_cls"),
    "huggingface": lambda at: (write_folder(at / "in"), "classifier"),
}


@pytest.mark.parametrize("layout", SOURCES)
def test_the_rows_are_taken_in_their_order(tmp_path, rows, layout):
    source, head = SOURCES[layout](tmp_path)
    stored = load_file(source if source.is_file() else source / "model.safetensors")
    request = Request(overrides=OVERRIDES, label_map=rows)
    found = convert(source, request)
    assert found.network.layout.name == layout
    assert found.network.config.num_labels == len(found.description.labels) == 4
    kernel, bias = found.params["classifier"]["kernel"], found.params["classifier"]["bias"]
    np.testing.assert_array_equal(kernel, stored[f"{head}.weight"][ROWS].T)
    np.testing.assert_array_equal(bias, stored[f"{head}.bias"][ROWS])
    # The logits are those of the whole model, at the rows.
    whole = convert(source, dataclasses.replace(request, label_map=None))
    clips = random_clips(TINY, batch=1)
    given, wanted = (each.model.apply({"params": each.params}, clips) for each in (found, whole))
    np.testing.assert_allclose(given, wanted[:, np.array(ROWS)], rtol=1e-5, atol=1e-6)


def test_the_command_records_them(tmp_path, rows, capsys):
    source, _ = SOURCES["huggingface"](tmp_path)
    assert run(source, tmp_path / "out", "--label-map", rows) == 0
    out = capsys.readouterr().out
    assert "\noverrides      num_labels=4\n" in out
    assert "\nlabels         4 (assumed, rows of rows.json)\n" in out
    loaded = vm.load(tmp_path / "out")
    assert loaded.labels == vm.Labels.numbered(4)
    assert loaded.conversion["network"]["overrides"] == {"num_labels": 4}
    assert loaded.conversion["labels"]["label_map"] == "rows.json"


def test_a_row_that_the_head_lacks(tmp_path, capsys):
    source, _ = SOURCES["original"](tmp_path)
    path = write_json(tmp_path / "rows.json", [0, 7])
    (problem,) = refusal(capsys, tmp_path, source, "--label-map", path)
    assert problem == (f"{path}: takes row 7 counted from 0, but {source} has 7 classes")


@pytest.mark.parametrize("architecture", ["VideoEncoder", "VideoPretrainer"])
def test_what_has_no_head(tmp_path, rows, capsys, architecture):
    for source in (
        write_folder(tmp_path / "in", architecture=architecture),
        write_v2_hub(tmp_path / "hub", num_heads=2),
    ):
        (problem,) = refusal(capsys, tmp_path, source, "--label-map", rows)
        assert problem == f"{rows}: {source} has no classes to take rows of"


def test_a_head_of_two_sizes(tmp_path, rows, capsys):
    tensors = random_tensors()
    tensors["classifier.bias"] = np.zeros(9, np.float32)
    source = write_folder(tmp_path / "in", tensors)
    (problem,) = refusal(capsys, tmp_path, source, "--label-map", rows)
    assert problem == (
        f"{source}: its head has no one number of classes: classifier.bias has 9, "
        f"classifier.weight has 7"
    )


def test_a_head_that_is_a_single_number(tmp_path, rows, capsys):
    file = write_original(tmp_path / "in.safetensors")
    tensors = load_file(file) | {"head.weight": np.float32(1), "head.bias": np.float32(1)}
    save_file({name: np.asarray(value) for name, value in tensors.items()}, file)
    (problem,) = refusal(capsys, tmp_path, file, "--label-map", rows)
    assert problem.endswith(f"but {file} has 0 classes")


# --- the names


def named(folder, **entries):
    """A folder with the names of its seven classes."""
    names = dict(enumerate(NAMES))
    inverse = {name: index for index, name in names.items()}
    return write_folder(folder, **{"id2label": names, "label2id": inverse} | entries)


def labels_of(source, path, names=None):
    request = Request(overrides=OVERRIDES, label_map=path, labels=names)
    description = convert(source, request).description
    return list(description.labels.names), description.conversion["labels"]["source"]


def test_names_in_the_config_follow_the_rows(tmp_path, rows):
    folder = named(tmp_path / "in")
    wanted = ["class 5", "class 0", "class 3", "class 6"]
    assert labels_of(folder, rows) == (wanted, "config.json")


def test_all_rows_in_another_order(tmp_path):
    order = [6, 0, 1, 2, 3, 4, 5]
    path = write_json(tmp_path / "rows.json", order)
    folder = named(tmp_path / "in")
    assert labels_of(folder, path)[0] == [NAMES[row] for row in order]
    # A file of as many names as classes is taken as it is.
    assert labels_of(folder, path, write_names(tmp_path / "names", 7))[0] == NAMES


@pytest.mark.parametrize("layout", SOURCES)
def test_names_from_a_file_of_either_length(tmp_path, rows, layout):
    source, _ = SOURCES[layout](tmp_path)
    all_names, few = write_names(tmp_path / "all", 7), write_names(tmp_path / "few", 4)
    assert labels_of(source, rows, all_names) == ([NAMES[row] for row in ROWS], "all")
    assert labels_of(source, rows, few) == (NAMES[:4], "few")


@pytest.mark.parametrize("count", [1, 3, 5, 6, 8])
def test_names_of_another_length(tmp_path, count, capsys):
    # Every row is below each of these numbers but the first.
    path = write_json(tmp_path / "rows.json", [2, 0])
    names = write_names(tmp_path / "names", count)
    source, _ = SOURCES["huggingface"](tmp_path)
    options = ("--label-map", path, "--labels", names)
    (problem,) = refusal(capsys, tmp_path, source, *options)
    assert problem == f"{names}: names {count} classes, {source} has 2 of 7"


def test_a_config_with_names_of_another_head(tmp_path, capsys):
    names = dict(enumerate(NAMES[:5]))
    folder = write_folder(tmp_path / "in", id2label=names, label2id=None, num_labels=None)
    path = write_json(tmp_path / "rows.json", [2, 0])
    (problem,) = refusal(capsys, tmp_path, folder, "--label-map", path)
    assert problem == f"{folder / 'config.json'}: names 5 classes, {folder} has 2 of 7"


REAL = LABELS / "label_710to400.json"


@pytest.mark.skipif(not REAL.is_file(), reason=f"no list of rows at {REAL}")
def test_the_published_list_takes_kinetics_400_out_of_710(tmp_path):
    config = dataclasses.replace(TINY, num_labels=710)
    source = write_original(tmp_path / "in.safetensors", config)
    given, _ = labels_of(source, REAL, LABELS / "label_map_k710.txt")
    wanted = vm.Labels.read(LABELS / "label_map_k400.txt")
    assert json.loads(REAL.read_text(encoding="utf-8"))[:2] == [341, 158]
    assert len(given) == 400
    assert given == list(wanted.names)
