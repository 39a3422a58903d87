"""The schema of the conversion report: what it takes, and that it takes nothing else."""

import copy
import dataclasses
import json

import jsonschema
import pytest

from convert import job
from convert.job import Request, convert
from convert.report_text import WIDTH, as_text
from tests.configs import TINY
from tests.folders import (
    run,
    write_folder,
    write_json,
    write_mmaction2,
    write_names,
    write_original,
    write_v2_hub,
)
from tests.reports import SCHEMA, problems

SIZES = ("--image-size", "12x20", "--num-frames", 6)
FIGURES = {
    "reference": "transformers 5.23.0, torch 2.13.0, given num_attention_heads=2",
    "backend": "cpu",
    "tolerance": 1e-5,
    "stages": [
        {"name": "embedding", "max_abs": 1e-6, "relative_l2": 2e-7},
        {"name": "loss", "max_abs": 0.0, "relative_l2": 0.0},
    ],
    "agrees": True,
}


SOURCES = {
    "classifier": lambda at: [write_folder(at / "in")],
    "pretrainer": lambda at: [write_folder(at / "in", architecture="VideoPretrainer")],
    "encoder": lambda at: [write_folder(at / "in", architecture="VideoEncoder")],
    "first token": lambda at: [
        write_folder(at / "in", config=dataclasses.replace(TINY, use_mean_pooling=False))
    ],
    "no biases": lambda at: [
        write_folder(at / "in", config=dataclasses.replace(TINY, qkv_bias=False))
    ],
    "heads": lambda at: [write_folder(at / "in"), "--num-heads", 3],
    "labels": lambda at: [write_folder(at / "in"), "--labels", write_names(at / "names", 7)],
    "rows": lambda at: [write_folder(at / "in"), "--label-map", write_json(at / "rows", [4, 1])],
    "bfloat16": lambda at: [write_folder(at / "in"), "--dtype", "bfloat16"],
    "float16": lambda at: [write_folder(at / "in"), "--dtype", "float16"],
    "original": lambda at: [write_original(at / "in.safetensors"), *SIZES, "--num-heads", 2],
    "original pretrainer": lambda at: [
        write_original(at / "in.safetensors", architecture="VideoPretrainer"),
        *(*SIZES, "--num-heads", 2, "--decoder-num-heads", 5),
    ],
    "mmaction2": lambda at: [write_mmaction2(at / "in.safetensors"), *SIZES, "--num-heads", 2],
    "V2 hub": lambda at: [
        write_v2_hub(at / "in", num_heads=2, img_size=[12, 20], num_frames=6, num_classes=0)
    ],
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_report_fits_the_schema_and_the_terminal(tmp_path, name, capsys):
    source, *options = SOURCES[name](tmp_path)
    assert run(source, tmp_path / "out", *options) == 0
    content = json.loads((tmp_path / "out" / "conversion.json").read_text(encoding="utf-8"))
    assert problems(content) == []
    lines = capsys.readouterr().out.replace(str(tmp_path), "").splitlines()
    assert [line for line in lines if len(line) > WIDTH] == []


def test_a_report_with_figures_and_of_the_hub_fits_the_schema(tmp_path):
    report = convert(write_folder(tmp_path / "in")).description.conversion
    hub = {"id": "MCG-NJU/videomae-base", "revision": "0123456789abcdef"}
    full = report | {"verification": FIGURES, "source": report["source"] | {"hub": hub}}
    assert problems(full) == []
    # Another outcome is never written.
    assert problems(full | {"verification": FIGURES | {"agrees": False}}) != []


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A report that has each optional part."""
    folder = tmp_path_factory.mktemp("full")
    file = write_mmaction2(folder / "in.safetensors")
    overrides = {"image_size": (12, 20), "num_frames": 6, "num_attention_heads": 2}
    overrides |= {"decoder_num_attention_heads": 5}
    rows = write_json(folder / "map", [1, 0])
    found = convert(file, Request(overrides=overrides, label_map=rows))
    job.write(found, folder / "out", prove=lambda params: {"verification": FIGURES})
    report = json.loads((folder / "out" / "conversion.json").read_text(encoding="utf-8"))
    report["source"] |= {
        "hub": {"id": "a/b", "revision": "main"},
        "entry": "model",
        "averaged_entry": "model_ema",
        "ignored_entries": [{"name": "model_ema", "reason": "averaged"}],
    }
    assert problems(report) == []
    return report


# Whose keys are names, or which lack some.
MAPS = ("bias_norms", "layer_norms", "dtypes", "overrides", "layer_norm_eps")
WRONG = {"surplus": "x"}


def places(value, path=()):
    """The path of every value in a report."""
    yield path
    entries = value.items() if isinstance(value, dict) else ()
    entries = enumerate(value) if isinstance(value, list) else entries
    for name, each in entries:
        yield from places(each, (*path, name))


def at(report, path):
    for name in path:
        report = report[name]
    return report


def with_value(report, path, value):
    changed = copy.deepcopy(report)
    at(changed, path[:-1])[path[-1]] = value
    return changed


def without(report, path):
    changed = copy.deepcopy(report)
    del at(changed, path[:-1])[path[-1]]
    return changed


def test_the_schema_refuses_what_it_does_not_know(full):
    objects = [path for path in places(full) if isinstance(at(full, path), dict)]
    assert len(objects) > 20
    for path in objects:
        assert problems(with_value(full, (*path, "surplus"), "x")), path


def test_the_schema_refuses_what_lacks_an_entry(full):
    tried = 0
    for path in places(full):
        if not path or isinstance(path[-1], int) or (len(path) > 1 and path[-2] in MAPS):
            continue
        tried += 1
        assert problems(without(full, path)), path
    assert tried > 100


def wrong_values(value):
    yield WRONG
    if isinstance(value, str):
        yield 1
    elif isinstance(value, bool):
        yield int(value)
    elif isinstance(value, (int, float)):
        yield from (str(value), True)
    elif isinstance(value, list):
        yield dict(enumerate(map(str, value)))
    elif isinstance(value, dict):
        yield list(value)


def test_the_schema_refuses_another_type(full):
    tried = 0
    for path in places(full):
        for value in wrong_values(at(full, path)) if path else ():
            tried += 1
            assert problems(with_value(full, path, value)), (path, value)
    assert tried > 400


def test_the_schema_describes_every_entry():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)

    def check(schema, path):
        assert schema.get("description"), path
        if "properties" in schema:
            assert schema["additionalProperties"] is False, path
            optional = set(schema["properties"]) - set(schema.get("required", ()))
            assert not optional or path[-1] in ("overrides", "layer_norm_eps"), path
        for name, each in schema.get("properties", {}).items():
            check(each, (*path, name))
        for name in ("items", "additionalProperties"):
            if isinstance(schema.get(name), dict) and "$ref" not in schema[name]:
                nested = schema[name]
                check({"description": "in the list's"} | nested, (*path, name))

    check(SCHEMA, ())
    for name, schema in SCHEMA["$defs"].items():
        check(schema, ("$defs", name))


def test_a_finished_report_shows_what_came_of_it(full):
    text = as_text(full)
    assert "\nhub            a/b, revision main\n" in text
    assert "\nwritten        labels.json" in text
    assert "\nverification   agrees with transformers 5.23.0, torch 2.13.0,\n" in text
    assert "relative L2 2.0e-07 at most\n" in text
