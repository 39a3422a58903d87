"""Damaged safetensors, index, JSON and label files: 2,000 of each are read or refused in words."""

import json
import time
import warnings

import numpy as np
import pytest
from safetensors.numpy import save

from benchmarks.checkpoints import draw as draw_tensors
from benchmarks.checkpoints import hugging_face_config, v2_hub_shapes
from convert.errors import ConversionError
from convert.label_map import read_label_map
from convert.preprocessor import read_preprocessor
from convert.recognize import find_layout, recognize
from convert.source import open_source, read_json
from tests import fuzz
from tests.configs import TINY
from tests.damage import damage_bytes, damage_safetensors, damage_text
from tests.folders import random_tensors, write_folder, write_original
from tests.fuzz import COMMANDS, COUNT, SEED, command_reader, run_cases
from videomae_jax.labels import Labels

LANDMARK = "videomae.embeddings.patch_embeddings.projection.weight"
INDEX = "model.safetensors.index.json"
CONFIG = hugging_face_config(TINY, "VideoClassifier") | {
    "id2label": {str(index): f"class {index}" for index in range(TINY.num_labels)},
    "label2id": {f"class {index}": index for index in range(TINY.num_labels)},
}
MODEL_CONFIG = {
    "img_size": [12, 20],
    "patch_size": 4,
    "in_chans": 3,
    "num_classes": 7,
    "embed_dim": 24,
    "depth": 3,
    "num_heads": 2,
    "mlp_ratio": 1.6667,
    "qkv_bias": True,
    "qk_scale": None,
    "drop_rate": 0.0,
    "norm_layer": "nn.LayerNorm",
    "layer_norm_eps": 1e-6,
    "init_values": 0.0,
    "use_learnable_pos_emb": False,
    "tubelet_size": 2,
    "use_mean_pooling": True,
    "num_frames": 6,
    "cos_attn": False,
}
PREPROCESSOR = {
    "crop_size": {"height": 12, "width": 20},
    "do_center_crop": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_processor_type": "VideoMAEImageProcessor",
    "image_std": [0.229, 0.224, 0.225],
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 12},
}


def small_tensors() -> dict[str, np.ndarray]:
    """A few tensors of every kind that a reader meets."""
    generator = np.random.default_rng(0)
    return {
        LANDMARK: generator.standard_normal((4, 3, 2, 4, 4), dtype=np.float32),
        "fc_norm.weight": np.ones(4, np.float16),
        "fc_norm.bias": np.zeros(4, np.float64),
        "step": np.array(3),
        "mask": np.array([True, False]),
        "empty": np.zeros((0, 5), np.float32),
    }


def read_all(folder) -> None:
    for tensor in open_source(folder).tensors.values():
        values = tensor.read()
        assert values.shape == tensor.shape


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    return path


def assert_both(outcomes) -> None:
    """Damage that is always found, or never, tests little."""
    assert sum(outcomes.values()) == COUNT
    assert outcomes["refused"] > COUNT / 4
    assert outcomes["read"] > COUNT / 100


def draw_safetensors(whole):
    return lambda draw: {"model.safetensors": damage_safetensors(whole, draw)}


def draw_shards(tensors):
    """The index damaged, or one of two shards."""
    names = sorted(tensors)
    files = [f"model-{part + 1:05}-of-00002.safetensors" for part in range(2)]
    weight_map = {name: files[part] for part in range(2) for name in names[part::2]}
    shards = {
        file: save({name: tensors[name] for name in names if weight_map[name] == file})
        for file in files
    }
    index = {"metadata": {"total_size": 2000}, "weight_map": weight_map}
    whole = {INDEX: json.dumps(index).encode(), **shards}

    def draw_files(draw):
        if draw.randrange(4):
            return whole | {INDEX: damage_text(index, draw)}
        file = draw.choice(files)
        return whole | {file: damage_safetensors(shards[file], draw)}

    return draw_files


def draw_config(draw):
    return {"config.json": damage_text(CONFIG, draw)}


def draw_preprocessor(draw):
    return {"preprocessor_config.json": damage_text(PREPROCESSOR, draw)}


def draw_labels(count):
    text = "".join(f"class {index}, “ä”\n" for index in range(count)).encode()

    def draw_files(draw):
        found = text
        for _ in range(draw.choice([1, 3])):
            found = damage_bytes(found, draw)
        return {"labels.txt": found}

    return draw_files


def read_config(folder):
    source = open_source(folder)
    recognize(source, find_layout(source), {})
    Labels.from_hf(source.config)


def test_safetensors(folder):
    draw = draw_safetensors(save(small_tensors(), {"format": "pt"}))
    assert_both(run_cases("safetensors", folder, draw, read_all))


def test_shards(folder):
    assert_both(run_cases("shards", folder, draw_shards(small_tensors()), read_all))


def test_configs(folder):
    (folder / "model.safetensors").write_bytes(save(small_tensors()))
    assert_both(run_cases("config.json", folder, draw_config, read_config))


def test_preprocessors(folder):
    def read(folder):
        read_preprocessor(read_json(folder / "preprocessor_config.json"))

    assert_both(run_cases("preprocessor_config.json", folder, draw_preprocessor, read))


def test_label_maps(folder):
    rows = list(np.random.default_rng(0).permutation(40)[:25].tolist())

    def draw(draw):
        return {"map.json": damage_text(rows, draw)}

    def read(folder):
        read_label_map(folder / "map.json")

    assert_both(run_cases("label map", folder, draw, read))


def test_model_configs(folder):
    """The settings of VideoMAE V2's folders on the hub."""
    tensors = draw_tensors(v2_hub_shapes(TINY, "VideoClassifier"))
    (folder / "model.safetensors").write_bytes(save(dict(tensors)))
    config = {"model_type": "VideoMAEv2_Base", "model_config": MODEL_CONFIG}

    def draw(draw):
        return {"config.json": damage_text(config, draw)}

    def read(folder):
        source = open_source(folder)
        recognize(source, find_layout(source), {"image_size": (12, 20)})

    assert_both(run_cases("model_config", folder, draw, read))


def test_labels(folder):
    def read(folder):
        Labels.read(folder / "labels.txt")

    assert_both(run_cases("labels", folder, draw_labels(30), read))


@pytest.mark.parametrize("kind", ["safetensors", "shards", "config", "preprocessor", "labels"])
def test_the_whole_command(tmp_path, capsys, kind):
    folder = write_folder(tmp_path / "folder", config=TINY)
    tensors = random_tensors(config=TINY)
    draw = {
        "safetensors": draw_safetensors(save(tensors)),
        "shards": draw_shards(tensors),
        "config": draw_config,
        "preprocessor": draw_preprocessor,
        "labels": draw_labels(TINY.num_labels),
    }[kind]
    source, options = "", []
    if kind == "shards":
        (folder / "model.safetensors").unlink()
    if kind == "labels":
        write_original(folder / "original.safetensors")
        source = "original.safetensors"
        options = ["--labels", "{folder}/labels.txt", "--image-size", "12x20"]
        options += ["--num-frames", "6", "--num-heads", "2"]
    read = command_reader(capsys, source, *options)
    outcomes = run_cases(f"the command, {kind}", folder, draw, read, count=COMMANDS)
    assert sum(outcomes.values()) == COMMANDS
    assert outcomes["refused"]


def raise_another_error(folder):
    json.loads("{")


def say_two_lines(folder):
    raise ValueError("first\nsecond")


def say_nothing(folder):
    raise ConversionError


def write_a_file(folder):
    (folder / "new").touch()


def change_a_file(folder):
    (folder / "labels.txt").write_text("changed")


def warn(folder):
    warnings.warn("heed this", stacklevel=1)


def take_memory(folder):
    assert len(b"x" * MOST_GROWTH) == MOST_GROWTH


def loop_forever(folder):
    while True:
        try:
            time.sleep(1)
        # A reader that takes any error for a damaged file.
        except Exception:
            continue


@pytest.mark.parametrize(
    "read",
    [
        raise_another_error,
        say_two_lines,
        say_nothing,
        write_a_file,
        change_a_file,
        warn,
        take_memory,
        loop_forever,
    ],
)
def test_a_bad_reader_is_found(folder, monkeypatch, read):
    monkeypatch.setattr(fuzz, "MOST_SECONDS", 1)
    with pytest.raises(AssertionError) as caught:
        run_cases("bad", folder, draw_labels(3), read, count=1)
    assert f"bad, case 0 of seed {SEED}" in str(caught.value) or read is take_memory


def test_a_case_is_known_by_its_seed_and_number(folder):
    drawn = []
    for _ in range(2):
        files = []

        def read(folder, files=files):
            files.append((folder / "labels.txt").read_bytes())

        run_cases("same", folder, draw_labels(3), read, count=20)
        drawn.append(files)
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) > 10
