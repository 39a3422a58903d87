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
# All that the original code and VideoMAE V2 can add to a network.
OPTIONS = {"cos_attn": True, "layer_scale_init_value": 0.1, "use_learnable_pos_emb": True}
MODELS = {
    "small_classifier": VideoClassifier(SMALL),
    # As published: the encoder of a pre-training model ends with a norm.
    "small_pretrainer": VideoPretrainer(dataclasses.replace(SMALL, use_mean_pooling=False)),
    "small_encoder": VideoEncoder(SMALL),
    "small_classifier_options": VideoClassifier(dataclasses.replace(SMALL, **OPTIONS)),
    "small_pretrainer_options": VideoPretrainer(
        dataclasses.replace(SMALL, use_mean_pooling=False, **OPTIONS)
    ),
    "giant_classifier": VideoClassifier(VARIANTS["giant"]),
}


def tree_of(name: str) -> dict[str, str]:
    leaves = flatten(abstract_params(MODELS[name]))
    return {path: f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in sorted(leaves.items())}


@pytest.mark.parametrize("name", MODELS)
def test_the_tree_is_the_frozen_one(name):
    assert tree_of(name) == json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", ["classifier", "pretrainer"])
def test_options_only_add(kind):
    plain, wide = tree_of(f"small_{kind}"), tree_of(f"small_{kind}_options")
    assert plain.items() <= wide.items()
    added = {path.rpartition("layers/")[2] for path in set(wide) - set(plain)}
    assert added == {
        "attention/logit_scale",
        "scale_1/gamma",
        "scale_2/gamma",
        "encoder/pos_embed",
    }


def test_every_frozen_tree_is_tested():
    assert {path.stem for path in FOLDER.iterdir()} == set(MODELS)


def write() -> None:
    for name in MODELS:
        text = json.dumps(tree_of(name), indent=2)
        (FOLDER / f"{name}.json").write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    write()
