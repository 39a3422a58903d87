"""Each warning: there when it should be, and not otherwise."""

import dataclasses

import pytest

from convert import job
from convert.cautions import about_heads
from convert.job import Request, convert
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

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
CROP = {"crop_size": {"height": 12, "width": 20}}
PARTS = ("attention.attention.q_bias", "attention.attention.v_bias")


def complete(path, tensors=None, *, preprocessor=IMAGENET, **options):
    """A folder that nothing is to be said of, but for what the options change."""
    folder = write_folder(path, tensors, **options)
    if preprocessor is not None:
        write_json(folder / "preprocessor_config.json", CROP | preprocessor)
    names = {"id2label": {str(n): f"class {n}" for n in range(TINY.num_labels)}}
    if options.get("architecture", "VideoClassifier") == "VideoClassifier":
        content = job.read_json(folder / "config.json")
        write_json(folder / "config.json", {"num_labels": None} | content | names)
    return folder


def warnings_of(source, **request):
    return convert(source, Request(**request)).description.conversion["warnings"]


@pytest.mark.parametrize("architecture", ["VideoClassifier", "VideoPretrainer", "VideoEncoder"])
def test_what_is_complete_has_no_warning(tmp_path, architecture):
    assert warnings_of(complete(tmp_path / "in", architecture=architecture)) == []


# --- heads


@pytest.mark.parametrize("name", VARIANTS)
def test_published_sizes_have_the_heads_they_were_trained_with(name):
    assert about_heads(VARIANTS[name]) is None


@pytest.mark.parametrize(
    ("name", "heads", "start"),
    [
        ("small", 16, "16 heads of 24: models 384 wide were trained by the original code with 6 "),
        ("small", 12, "12 heads of 32: models 384 wide were trained by the original code with 6 "),
        ("base", 16, "16 heads of 48: models 768 wide were trained by the original code with 12 "),
        ("large", 8, "8 heads of 128: models 1024 wide were trained by the original code with 16 "),
        ("huge", 20, "20 heads of 64: models 1280 wide were trained by the original code with 16 "),
        ("giant", 22, "22 heads of 64: models 1408 wide were trained by the original code with 16"),
    ],
)
def test_other_heads_than_were_trained(name, heads, start):
    text = about_heads(dataclasses.replace(VARIANTS[name], num_attention_heads=heads))
    assert text is not None
    assert text.startswith(start)
    trained = VARIANTS[name].num_attention_heads
    assert text.endswith(f"Convert again with --num-heads {trained} and compare.")
    assert ("The published config of the small models says 16" in text) == (name == "small")


def test_widths_that_were_never_published_have_no_trap():
    for heads in (1, 2, 3, 8):
        assert about_heads(dataclasses.replace(TINY, num_attention_heads=heads)) is None


def test_the_trap_comes_first(tmp_path):
    config = dataclasses.replace(TINY, hidden_size=384, num_attention_heads=16)
    folder = write_folder(tmp_path / "in", config=config)
    first, *others = warnings_of(folder)
    assert first == about_heads(config)
    assert len(others) == 2
    assert warnings_of(folder, overrides={"num_attention_heads": 6}) == others
    # What the user says is no reason to be silent.
    assert len(warnings_of(folder, overrides={"num_attention_heads": 12})) == 3


# --- biases


def without_biases(parts, layers=range(3)):
    tensors = random_tensors()
    for layer in layers:
        for part in parts:
            tensors[f"videomae.encoder.layer.{layer}.{part}"][:] = 0.0
    return tensors


def test_biases_that_are_all_zero(tmp_path):
    (text,) = warnings_of(complete(tmp_path / "in", without_biases(PARTS)))
    assert text.startswith("All query and value biases are zero. ")


@pytest.mark.parametrize(
    ("parts", "layers"), [(PARTS[:1], range(3)), (PARTS[1:], range(3)), (PARTS, (0, 2))]
)
def test_some_biases_that_are_zero_are_no_reason(tmp_path, parts, layers):
    assert warnings_of(complete(tmp_path / "in", without_biases(parts, layers))) == []


def test_no_biases_are_no_zero_biases(tmp_path):
    config = dataclasses.replace(TINY, qkv_bias=False)
    assert warnings_of(complete(tmp_path / "in", config=config)) == []


# --- preprocessing


def test_preprocessing_that_is_assumed(tmp_path):
    (text,) = warnings_of(complete(tmp_path / "in", preprocessor=None))
    assert text.startswith("No preprocessor_config.json: preprocessing is assumed, ")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"image_mean": [0.5, 0.5, 0.5]}, "image_mean"),
        ({"image_mean": 0.5, "image_std": 0.5}, "image_mean and image_std"),
        ({"do_normalize": False}, "do_normalize"),
        ({"do_rescale": False}, "do_rescale"),
        ({"rescale_factor": 0.5}, "rescale_factor"),
    ],
)
def test_other_pixel_values_than_in_training(tmp_path, changed, named):
    (text,) = warnings_of(complete(tmp_path / "in", preprocessor=IMAGENET | changed))
    assert text.startswith(f"preprocessor_config.json has another {named} than the original code ")


@pytest.mark.parametrize(
    "changed",
    [
        {"resample": 3},
        {"size": {"shortest_edge": 14}},
        {"do_resize": False},
        {"do_rescale": True, "rescale_factor": 1 / 255},
    ],
    ids=str,
)
def test_other_ways_to_resize_are_no_warning(tmp_path, changed):
    assert warnings_of(complete(tmp_path / "in", preprocessor=IMAGENET | changed)) == []


def test_original_files_are_preprocessed_as_in_training(tmp_path):
    file = write_original(tmp_path / "in.safetensors")
    texts = warnings_of(file, overrides={"num_attention_heads": 2} | SIZES)
    assert not any("preprocess" in text for text in texts)


# --- names


def test_names_that_are_assumed(tmp_path):
    folder = write_folder(tmp_path / "in")
    write_json(folder / "preprocessor_config.json", CROP | IMAGENET)
    (text,) = warnings_of(folder)
    assert text == "No class names: LABEL_0, LABEL_1, ... are used. Say --labels FILE."
    assert warnings_of(folder, labels=write_names(tmp_path / "names", 7)) == []


# --- averaged weights


@pytest.mark.parametrize("averaged", [None, "model_ema"])
def test_averaged_weights_are_offered(tmp_path, monkeypatch, averaged):
    right = job.open_source

    def opened(path, **options):
        return dataclasses.replace(right(path, **options), averaged=averaged)

    monkeypatch.setattr(job, "open_source", opened)
    wanted = "The file also holds averaged weights (model_ema): --weights ema takes those."
    texts = warnings_of(complete(tmp_path / "in"))
    assert texts == ([] if averaged is None else [wanted])


# --- what is assumed

SIZES = {"image_size": (12, 20), "num_frames": 6}
HEADS = {"num_attention_heads": 6}
START = "The file doesn't tell, so these are assumed: "
NARROW = dataclasses.replace(TINY, hidden_size=384, num_attention_heads=6, decoder_hidden_size=192)


def assumptions(source, **overrides):
    texts = warnings_of(source, overrides=overrides)
    found = [text.removeprefix(START) for text in texts if text.startswith(START)]
    assert len(found) <= 1
    return found[0] if found else None


def test_what_an_original_file_does_not_tell(tmp_path):
    file = write_original(tmp_path / "in.safetensors", NARROW)
    heads, size, frames = (
        "6 heads of 64 (--num-heads)",
        "224 x 224 pixels (--image-size)",
        "16 frames (--num-frames)",
    )
    assert assumptions(file) == f"{heads}, {size}, {frames}."
    assert assumptions(file, num_frames=16) == f"{heads}, {size}."
    assert assumptions(file, **SIZES) == f"{heads}."
    assert assumptions(file, **SIZES, **HEADS) is None


def test_what_a_pretraining_file_does_not_tell(tmp_path):
    file = write_original(tmp_path / "in.safetensors", NARROW, "VideoPretrainer")
    decoder = "3 decoder heads (--decoder-num-heads)."
    assert assumptions(file, **SIZES, **HEADS) == decoder
    assert assumptions(file, **SIZES) == f"6 heads of 64 (--num-heads), {decoder}"
    assert assumptions(file, **SIZES, **HEADS, decoder_num_attention_heads=3) is None


def test_what_other_layouts_do_not_tell(tmp_path):
    mmaction2 = write_mmaction2(tmp_path / "in.safetensors", NARROW)
    assert assumptions(mmaction2, **SIZES) == "6 heads of 64 (--num-heads)."
    told = write_v2_hub(tmp_path / "told", NARROW, num_heads=6, img_size=[12, 20], num_frames=6)
    assert assumptions(told) is None
    untold = write_v2_hub(tmp_path / "untold", NARROW, img_size=[12, 20], num_frames=6)
    assert assumptions(untold) == "6 heads of 64 (--num-heads)."


def test_a_config_tells_everything(tmp_path):
    assert assumptions(complete(tmp_path / "in")) is None
