"""Which layout and sizes a source has, by its keys and shapes; without torch."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks.checkpoints import (
    draw,
    hugging_face_config,
    hugging_face_shapes,
    mmaction2_shapes,
    original_shapes,
    v2_hub_shapes,
)
from convert import job
from convert.errors import ConversionError
from convert.layouts import HUGGING_FACE, LAYOUTS, MMACTION2, ORIGINAL, V2_HUB
from convert.recognize import find_layout
from convert.source import open_source
from tests.configs import TINY
from tests.folders import refusal, run, write_json
from videomae_jax.tokens import sinusoid_table

SHAPES = {
    "huggingface": hugging_face_shapes,
    "videomae-v2-hub": v2_hub_shapes,
    "original": original_shapes,
    "mmaction2": mmaction2_shapes,
}
OPTIONS = {"cos_attn": True, "layer_scale_init_value": 0.1, "use_learnable_pos_emb": True}
# Square frames, whose size stored positions tell: 3 x 3 x 3 tokens.
SQUARE = dataclasses.replace(TINY, image_size=(12, 12))
SAID = ["--num-heads", 2, "--num-frames", 6]
OVERRIDES = {"num_attention_heads": 2, "num_frames": 6}


def tensors_of(layout, config=TINY, architecture="VideoClassifier"):
    """Random tensors in a layout; mmaction2's positions are the sinusoids."""
    tensors = dict(draw(SHAPES[layout.name](config, architecture)))
    if layout is MMACTION2 and not config.use_learnable_pos_emb:
        tensors["backbone.pos_embed"] = sinusoid_table(config.num_tokens, config.hidden_size)[None]
    return tensors


def write(folder, tensors, config_json=None):
    """A folder with the tensors, and a config.json where there is one."""
    folder.mkdir(parents=True)
    contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    save_file(contiguous, folder / "model.safetensors")
    if config_json is not None:
        write_json(folder / "config.json", config_json)
    return folder


def config_json_of(layout):
    if layout is HUGGING_FACE:
        return hugging_face_config(TINY, "VideoClassifier")
    return {"model_config": {"num_heads": 2}} if layout is V2_HUB else None


def prefixes_of(layout):
    """No prefix, each, and every two, of those that aren't part of the names already."""
    pairs = map("".join, itertools.product(layout.prefixes, repeat=2))
    return ["", *layout.prefixes, *pairs]


@pytest.mark.parametrize(
    ("layout", "prefix"),
    [(layout, prefix) for layout in LAYOUTS for prefix in prefixes_of(layout)],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_layout_is_recognised_behind_all_prefixes(tmp_path, layout, prefix):
    tensors = {prefix + name: value for name, value in tensors_of(layout).items()}
    folder = write(tmp_path / "folder", tensors, config_json_of(layout))
    source = open_source(folder)
    assert find_layout(source) is layout
    taken = [layout.find(layout.strip(name)) for name in source.tensors]
    assert None not in taken


def test_every_layout_is_tested_and_has_a_landmark_of_its_own():
    assert set(SHAPES) == {layout.name for layout in LAYOUTS}
    assert len({layout.landmark for layout in LAYOUTS}) == len(LAYOUTS)
    for layout in LAYOUTS:
        assert layout.find(layout.landmark) is not None


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_it_is_found_without_looking_at_names_of_files(tmp_path, layout):
    folder = write(tmp_path / "folder", tensors_of(layout), config_json_of(layout))
    found = job.convert(folder, job.Request(overrides={"num_attention_heads": 2} | sizes(layout)))
    assert found.network.layout is layout
    assert found.network.architecture == "VideoClassifier"
    assert found.network.config.hidden_size == TINY.hidden_size


def sizes(layout):
    if layout is HUGGING_FACE:
        return {}
    return {"num_frames": 6, "image_size": (12, 20)}


@pytest.mark.parametrize("config_json", [None, {"model_type": "videomae"}, {}])
def test_model_before_every_name_without_model_config_is_the_original_layout(tmp_path, config_json):
    # PyTorch Lightning's name for what a training module holds.
    tensors = {f"model.{name}": value for name, value in tensors_of(ORIGINAL).items()}
    folder = write(tmp_path / "folder", tensors, config_json)
    assert find_layout(open_source(folder)) is ORIGINAL
    given = job.convert(folder, job.Request(overrides=OVERRIDES | {"image_size": (12, 20)}))
    assert given.network.config.hidden_size == TINY.hidden_size


# --- unknown layouts


def problem_of(folder):
    with pytest.raises(ConversionError) as caught:
        find_layout(open_source(folder))
    (problem,) = caught.value.problems
    return problem


def test_nothing_that_fits_lists_the_layouts_and_the_first_names(tmp_path, capsys):
    tensors = {f"visual.layer{number}.w": np.ones(3, np.float32) for number in range(9)}
    folder = write(tmp_path / "folder", tensors)
    (problem,) = refusal(capsys, tmp_path, folder, tmp_path / "out")
    assert problem == (
        f"{folder}: not a VideoMAE layout known here (huggingface, videomae-v2-hub, original, "
        "mmaction2); its first tensors are visual.layer0.w, visual.layer1.w, visual.layer2.w, "
        "visual.layer3.w"
    )


def test_an_empty_file_has_no_first_names(tmp_path):
    folder = write(tmp_path / "folder", {})
    assert problem_of(folder).endswith("; its first tensors are none")


NEAREST = {
    "huggingface": "videomae.embeddings.patch_embeddings.projection.weight",
    "original": "patch_embed.proj.weight",
    "mmaction2": "backbone.patch_embed.projection.weight",
    "videomae-v2-hub": "model.patch_embed.proj.weight",
}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_the_nearest_layout_is_named_with_what_did_not_fit(tmp_path, layout):
    tensors = tensors_of(layout)
    # What a fork may call it.
    tensors["stem.conv.weight"] = tensors.pop(NEAREST[layout.name])
    tensors["zz.weight"] = np.ones(2, np.float32)
    folder = write(tmp_path / "folder", tensors, config_json_of(layout))
    count = len(tensors)
    assert problem_of(folder) == (
        f"{folder}: not a VideoMAE layout known here; nearest is {layout.name}, which {count - 2} "
        f"of {count} tensors fit, but not stem.conv.weight, zz.weight; {layout.landmark} is missing"
    )


def test_where_all_fit_but_the_first_is_missing_that_is_said(tmp_path):
    tensors = tensors_of(ORIGINAL)
    del tensors["patch_embed.proj.weight"]
    count = len(tensors)
    assert problem_of(write(tmp_path / "folder", tensors)).endswith(
        f"nearest is original, which {count} of {count} tensors fit; patch_embed.proj.weight is "
        "missing"
    )


# --- what shapes tell


@pytest.mark.parametrize("architecture", ["VideoClassifier", "VideoEncoder", "VideoPretrainer"])
@pytest.mark.parametrize("pooling", [True, False], ids=["pooled", "normed"])
@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["plain", "options"])
def test_shapes_tell_the_config(tmp_path, architecture, pooling, options):
    config = dataclasses.replace(SQUARE, use_mean_pooling=pooling, **options)
    folder = write(tmp_path / "folder", tensors_of(ORIGINAL, config, architecture))
    overrides = {"num_frames": 6, "num_attention_heads": 2, "decoder_num_attention_heads": 5}
    if options:
        # Factors of each head and positions of each token tell these.
        overrides = {"num_frames": 6}
    else:
        overrides["image_size"] = (12, 12)
    network = job.convert(folder, job.Request(overrides=overrides)).network
    assert network.architecture == architecture
    told = network.config.to_dict()
    wanted = config.to_dict() | dict.fromkeys(
        ("layer_norm_eps", "fc_norm_eps", "decoder_norm_eps"), 1e-6
    )
    apart = {name for name in wanted if wanted[name] != told[name]}
    if architecture != "VideoPretrainer":
        apart = {name for name in apart if not name.startswith("decoder_")}
    if architecture != "VideoClassifier":
        apart -= {"num_labels"}
    assert not apart


def test_stored_sinusoids_are_ignored_with_a_reason(tmp_path):
    folder = write(tmp_path / "folder", tensors_of(MMACTION2, SQUARE))
    network = job.convert(folder, job.Request(overrides=OVERRIDES)).network
    assert network.config.image_size == (12, 12)
    ((name, reason),) = network.ignored.items()
    assert name == "backbone.pos_embed"
    assert reason.startswith("the table of sinusoids, which is computed (")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_sinusoids_in_any_precision_are_sinusoids(tmp_path, dtype):
    tensors = tensors_of(MMACTION2, SQUARE)
    tensors["backbone.pos_embed"] = tensors["backbone.pos_embed"].astype(dtype)
    folder = write(tmp_path / "folder", tensors)
    network = job.convert(folder, job.Request(overrides=OVERRIDES)).network
    assert set(network.ignored) == {"backbone.pos_embed"}


@pytest.mark.parametrize(
    ("positions", "words"),
    [
        (np.ones((27, 24), np.float32), "wrong shape: backbone.pos_embed [27, 24]"),
        (np.ones((2, 27, 24), np.float32), "wrong shape: backbone.pos_embed [2, 27, 24]"),
        (np.ones((1, 27, 23), np.float32), "wrong shape: backbone.pos_embed [1, 27, 23]"),
        (np.ones((1, 27, 24), np.int32), "not a float: backbone.pos_embed is I32"),
        (np.full((1, 27, 24), np.nan, np.float32), "backbone.pos_embed holds NaN or Inf"),
        (np.ones((1, 26, 24), np.float32), "26 positions are no square frames of 6 frames"),
        # Numbers that no memory holds, of which the file holds none.
        (np.ones((1, 10**12, 0), np.float32), "1000000000000 positions are no square frames"),
        (np.ones((1, 0, 10**12), np.float32), "0 positions are no square frames"),
        (np.ones((), np.float32), "0 positions are no square frames"),
    ],
)
def test_positions_that_can_not_be_are_one_line(tmp_path, capsys, positions, words):
    tensors = tensors_of(MMACTION2, SQUARE) | {"backbone.pos_embed": positions}
    folder = write(tmp_path / "folder", tensors)
    (problem,) = refusal(capsys, tmp_path, folder, tmp_path / "out", *SAID)
    assert problem.startswith(f"{folder}: ")
    assert words in problem


@pytest.mark.parametrize("count", [0, -6, 5])
def test_frames_that_positions_do_not_fit_are_one_line(tmp_path, capsys, count):
    folder = write(tmp_path / "folder", tensors_of(MMACTION2, SQUARE))
    options = ["--num-heads", 2, f"--num-frames={count}"]
    (problem,) = refusal(capsys, tmp_path, folder, *options)
    assert f"27 positions are no square frames of {count} frames in tubelets of 2" in problem


@pytest.mark.parametrize("axis", range(5))
def test_a_patch_kernel_of_no_size_is_one_line(tmp_path, capsys, axis):
    shape = [24, 3, 2, 4, 4]
    shape[axis] = 0
    tensors = tensors_of(MMACTION2, SQUARE)
    tensors["backbone.patch_embed.projection.weight"] = np.ones(shape, np.float32)
    folder = write(tmp_path / "folder", tensors)
    problems = refusal(capsys, tmp_path, folder, *SAID)
    assert all(problem.startswith(f"{folder}: ") for problem in problems)


def test_factors_of_no_head_are_one_line(tmp_path, capsys):
    config = dataclasses.replace(TINY, cos_attn=True)
    tensors = tensors_of(ORIGINAL, config)
    for layer in range(3):
        tensors[f"blocks.{layer}.attn.scale"] = np.ones((0, 1, 1), np.float32)
    folder = write(tmp_path / "folder", tensors)
    (problem,) = refusal(capsys, tmp_path, folder, "--image-size", "12x20", "--num-frames", 6)
    assert problem == f"{folder}: num_attention_heads must be at least 1, got 0"


def test_a_broken_config_json_beside_an_original_file_is_none_of_its_business(tmp_path):
    folder = write(tmp_path / "folder", tensors_of(ORIGINAL))
    (folder / "config.json").write_text("{not JSON", encoding="utf-8")
    assert run(folder, *SAID, "--image-size", "12x20") == 0


def test_model_config_is_named_when_it_is_not_json(tmp_path, capsys):
    folder = write(tmp_path / "folder", tensors_of(V2_HUB), json.loads("{}"))
    (folder / "config.json").write_text("{not JSON", encoding="utf-8")
    (problem,) = refusal(capsys, tmp_path, folder, *SAID)
    assert problem.startswith(f"{folder / 'config.json'}: not valid JSON (")
