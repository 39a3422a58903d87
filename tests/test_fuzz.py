"""Damaged safetensors, index, JSON and label files: 2,000 of each are read or refused in words."""

import json

import numpy as np
import pytest
from safetensors.numpy import save

from benchmarks.checkpoints import hugging_face_config
from convert.preprocessor import read_preprocessor
from convert.recognize import recognize
from convert.source import open_source, read_json
from tests.configs import TINY
from tests.fuzz import (
    COUNT,
    damage_bytes,
    damage_safetensors,
    damage_text,
    run_cases,
)
from videomae_jax.labels import Labels

LANDMARK = "videomae.embeddings.patch_embeddings.projection.weight"
INDEX = "model.safetensors.index.json"
CONFIG = hugging_face_config(TINY, "VideoClassifier") | {
    "id2label": {str(index): f"class {index}" for index in range(TINY.num_labels)},
    "label2id": {f"class {index}": index for index in range(TINY.num_labels)},
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


def test_safetensors(folder):
    whole = save(small_tensors(), {"format": "pt"})

    def draw(chosen):
        return {"model.safetensors": damage_safetensors(whole, chosen)}

    assert_both(run_cases("safetensors", folder, draw, read_all))


def test_shards(folder):
    tensors = small_tensors()
    names = sorted(tensors)
    files = [f"model-{part + 1:05}-of-00002.safetensors" for part in range(2)]
    shards = {
        file: save({n: tensors[n] for n in names[part::2]}) for part, file in enumerate(files)
    }
    weight_map = {name: files[part] for part in range(2) for name in names[part::2]}
    index = {"metadata": {"total_size": 2000}, "weight_map": weight_map}

    def draw(chosen):
        found = {INDEX: json.dumps(index).encode(), **shards}
        if chosen.randrange(4):
            found[INDEX] = damage_text(index, chosen)
        else:
            file = chosen.choice(files)
            found[file] = damage_safetensors(shards[file], chosen)
        return found

    assert_both(run_cases("shards", folder, draw, read_all))


def test_configs(folder):
    (folder / "model.safetensors").write_bytes(save(small_tensors()))

    def draw(chosen):
        return {"config.json": damage_text(CONFIG, chosen)}

    def read(folder):
        source = open_source(folder)
        recognize(source, {})
        Labels.from_hf(source.config)

    assert_both(run_cases("config.json", folder, draw, read))


def test_preprocessors(folder):
    path = folder / "preprocessor_config.json"

    def draw(chosen):
        return {path.name: damage_text(PREPROCESSOR, chosen)}

    def read(_):
        read_preprocessor(read_json(path))

    assert_both(run_cases("preprocessor_config.json", folder, draw, read))


def test_labels(folder):
    text = "".join(f"class {index}, “ä”\n" for index in range(30)).encode()

    def draw(chosen):
        found = text
        for _ in range(chosen.choice([1, 3])):
            found = damage_bytes(found, chosen)
        return {"labels.txt": found}

    assert_both(run_cases("labels", folder, draw, lambda _: Labels.read(folder / "labels.txt")))
