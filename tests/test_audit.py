"""The conversion report says what is so."""

import dataclasses
import hashlib

import numpy as np
import pytest

from convert import audit, job
from convert.job import Request, convert
from convert.report_text import as_text
from tests.configs import TINY
from tests.folders import (
    random_tensors,
    write_folder,
    write_json,
    write_mmaction2,
    write_names,
    write_original,
    write_v2_hub,
)
from videomae_jax.config import VARIANTS
from videomae_jax.processing import Preprocess

OVERRIDES = {"image_size": (12, 20), "num_frames": 6, "num_attention_heads": 2}


def report_of(source, **request):
    return convert(source, Request(**request)).description.conversion


def test_every_file_that_was_read_has_its_digest(tmp_path):
    folder = write_folder(tmp_path / "in")
    write_json(folder / "preprocessor_config.json", {"crop_size": {"height": 12, "width": 20}})
    names, rows = write_names(tmp_path / "names", 2), write_json(tmp_path / "rows", [4, 1])
    report = report_of(folder, labels=names, label_map=rows)
    read = [
        *(folder / name for name in ("model.safetensors", "config.json")),
        *(folder / "preprocessor_config.json", names, rows),
    ]
    wanted = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in read}
    assert {file["name"]: file["sha256"] for file in report["source"]["files"]} == wanted
    assert report["labels"] == {"source": "names", "count": 2, "label_map": "rows"}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("labels", [400, 174])
def test_the_nearest_published_size_is_itself(name, labels):
    config = dataclasses.replace(VARIANTS[name], num_labels=labels)
    found = audit.nearest_variant("VideoClassifier", config)
    counts = {"small": 22_033_936, "base": 86_534_800, "large": 304_270_736, "huge": 632_119_440}
    assert found["name"] == name
    if name in counts:
        assert found["parameters"] == counts[name] - (400 - labels) * (config.hidden_size + 1)
    # A few layers more or fewer are still nearest to it.
    other = dataclasses.replace(config, num_hidden_layers=config.num_hidden_layers - 2)
    assert audit.nearest_variant("VideoClassifier", other) == found


def test_the_statistics_are_those_of_the_source(tmp_path):
    tensors = random_tensors()
    statistics = report_of(write_folder(tmp_path / "in", tensors))["statistics"]
    block = "videomae.encoder.layer.{}."
    for part in ("query", "value"):
        names = [f"{block.format(n)}attention.attention.{part[0]}_bias" for n in range(3)]
        norms = [np.linalg.norm(tensors[name]) for name in names]
        found = statistics["bias_norms"][f"encoder/layers/attention/qkv/{part}_bias"]
        np.testing.assert_allclose(found, [min(norms), max(norms)], rtol=1e-6)
    after = [tensors[f"{block.format(n)}layernorm_after.weight"] for n in range(3)]
    scale = statistics["layer_norms"]["encoder/layers/norm_2"]["scale"]
    assert scale == [np.min(after), np.max(after)]
    assert set(statistics["layer_norms"]) == {
        *("encoder/layers/norm_1", "encoder/layers/norm_2", "fc_norm")
    }


def test_norms_of_large_biases_are_finite(tmp_path):
    tensors = random_tensors()
    name = "videomae.encoder.layer.1.attention.attention.q_bias"
    tensors[name] = np.full_like(tensors[name], 3e38)
    norms = report_of(write_folder(tmp_path / "in", tensors))["statistics"]["bias_norms"]
    assert 1e39 < norms["encoder/layers/attention/qkv/query_bias"][1] < 1e40


@pytest.mark.parametrize(
    ("architecture", "pooled", "wanted"),
    [
        ("VideoClassifier", True, {"blocks": 1e-12, "fc_norm": 1e-5}),
        ("VideoClassifier", False, {"blocks": 1e-12, "encoder.norm": 1e-12}),
        ("VideoEncoder", True, {"blocks": 1e-12}),
        ("VideoPretrainer", True, {"blocks": 1e-12, "decoder.norm": 1e-5}),
        (
            "VideoPretrainer",
            False,
            {"blocks": 1e-12, "encoder.norm": 1e-12, "decoder.norm": 1e-5},
        ),
    ],
)
def test_the_eps_of_every_norm(tmp_path, architecture, pooled, wanted):
    config = dataclasses.replace(TINY, use_mean_pooling=pooled)
    folder = write_folder(tmp_path / "in", architecture=architecture, config=config)
    assert report_of(folder)["network"]["layer_norm_eps"] == wanted


def test_ignored_tensors_have_their_reasons(tmp_path):
    more = {
        "data_preprocessor.mean": np.zeros(3, np.float32),
        "roi_head.a": np.zeros(3, np.float32),
        "roi_head.b": np.zeros(3, np.float32),
    }
    file = write_mmaction2(tmp_path / "in.safetensors", **more)
    report = report_of(file, overrides=OVERRIDES)
    found = {entry["name"]: entry["reason"] for entry in report["tensors"]["ignored"]}
    assert set(found) == {*more, "backbone.pos_embed"}
    assert found["backbone.pos_embed"].startswith("the table of sinusoids, which is computed")
    assert report["tensors"]["read"] == report["tensors"]["mapped"] + 4
    text = as_text(report)
    detection = "a detection head, which classifies regions and not clips"
    assert f"\n               roi_head.a and 1 more: {detection}\n" in text


def test_what_lies_beside_the_weights_has_its_reason(tmp_path, monkeypatch):
    names = ("args", "epoch", "model", "model_ema", "optimizer", "scaler", "thing")
    right = job.open_source

    def opened(path, **options):
        return dataclasses.replace(
            right(path, **options), entry="module", ignored_entries=names, averaged="model_ema"
        )

    monkeypatch.setattr(job, "open_source", opened)
    report = report_of(write_folder(tmp_path / "in"))
    left = {entry["name"]: entry["reason"] for entry in report["source"]["ignored_entries"]}
    assert tuple(left) == names
    assert left["model_ema"] == "averaged weights; --weights ema takes them"
    assert left["thing"] == audit.NOT_WEIGHTS
    # Every other has a reason of its own.
    assert len(set(left.values())) == len(names)
    text = as_text(report)
    assert "[module]\n" in text
    assert f"\nleft out       args: {left['args']}\n               epoch: {left['epoch']}\n" in text


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, ["resize"]),
        ({"resize": "opencv"}, []),
        ({"image_mean": 0.5}, ["resize", "image_mean"]),
        ({"image_std": (0.5, 0.5, 0.5)}, ["resize", "image_std"]),
        ({"resample": 3}, ["resize", "resample"]),
        ({"size": {"height": 224, "width": 224}}, ["resize", "size"]),
        ({"size": {"shortest_edge": 256}}, ["resize", "size"]),
        ({"do_resize": False, "resample": 3}, ["do_resize"]),
        ({"do_center_crop": False}, ["do_center_crop", "resize"]),
        ({"do_rescale": False, "rescale_factor": 1.0}, ["do_rescale", "resize"]),
        ({"rescale_factor": 1.0}, ["resize", "rescale_factor"]),
        ({"do_normalize": False, "image_mean": 0.5}, ["do_normalize", "resize"]),
    ],
)
def test_where_preprocessing_differs_from_the_original(fields, wanted):
    original = Preprocess.original()
    given = dataclasses.replace(original, **{"resize": "pil"} | fields)
    assert audit.differences(given, original) == wanted


def test_sizes_that_the_original_never_had_are_not_compared():
    given = dataclasses.replace(Preprocess.original((12, 20)), size={"shortest_edge": 12})
    assert audit.differences(given, Preprocess.original((12, 20))) == []


@pytest.mark.parametrize(
    ("given", "assumed"),
    [
        ({}, ["num_attention_heads", "image_size", "num_frames"]),
        ({"num_frames": 6}, ["num_attention_heads", "image_size"]),
        ({"num_attention_heads": 6, "image_size": (12, 20)}, ["num_frames"]),
        ({"num_attention_heads": 6, "image_size": (12, 20), "num_frames": 6}, []),
    ],
)
def test_what_an_original_file_leaves_open_is_listed(tmp_path, given, assumed):
    config = dataclasses.replace(TINY, hidden_size=384, num_hidden_layers=1)
    file = write_original(tmp_path / "in.safetensors", config)
    assert report_of(file, overrides=given)["network"]["assumed"] == assumed


def test_what_files_tell_is_not_assumed(tmp_path):
    assert report_of(write_folder(tmp_path / "folder"))["network"]["assumed"] == []
    square = dataclasses.replace(TINY, hidden_size=384, image_size=(16, 16), num_frames=16)
    mmaction2 = write_mmaction2(tmp_path / "mmaction2.safetensors", square)
    network = report_of(mmaction2)["network"]
    assert network["assumed"] == ["num_attention_heads", "num_frames"]
    assert network["config"]["image_size"] == [16, 16]
    cosine = dataclasses.replace(TINY, cos_attn=True)
    file = write_original(tmp_path / "cosine.safetensors", cosine)
    assert report_of(file)["network"]["assumed"] == ["image_size", "num_frames"]
    config = dataclasses.replace(TINY, hidden_size=384)
    said = write_v2_hub(tmp_path / "said", config, num_heads=6, img_size=[12, 20], all_frames=6)
    assert report_of(said)["network"]["assumed"] == []
    unsaid = write_v2_hub(tmp_path / "unsaid", config, img_size=[12, 20])
    assert report_of(unsaid)["network"]["assumed"] == ["num_attention_heads", "num_frames"]
