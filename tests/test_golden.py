"""The parameter trees are public API: frozen here as JSON, path: dtype[shape].

python -m tests.test_golden

writes them anew. A change in them breaks every converted directory: change `checkpoint.FORMAT` too.
"""

import dataclasses
import json
from pathlib import Path

import pytest

from convert.translate import flatten
from videomae_jax.config import VARIANTS
from videomae_jax.model import VideoClassifier, VideoEncoder, VideoPretrainer, abstract_params

FOLDER = Path(__file__).parent / "golden"
SMALL = VARIANTS["small"]
MODELS = {
    "small_classifier": VideoClassifier(SMALL),
    # As published: the encoder of a pre-training model ends with a norm.
    "small_pretrainer": VideoPretrainer(dataclasses.replace(SMALL, use_mean_pooling=False)),
    "small_encoder": VideoEncoder(SMALL),
}


def tree_of(name: str) -> dict[str, str]:
    leaves = flatten(abstract_params(MODELS[name]))
    return {path: f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in sorted(leaves.items())}


@pytest.mark.parametrize("name", MODELS)
def test_the_tree_is_the_frozen_one(name):
    assert tree_of(name) == json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def test_every_frozen_tree_is_tested():
    assert {path.stem for path in FOLDER.iterdir()} == set(MODELS)


def write() -> None:
    for name in MODELS:
        text = json.dumps(tree_of(name), indent=2)
        (FOLDER / f"{name}.json").write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    write()
