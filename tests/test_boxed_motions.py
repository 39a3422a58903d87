"""The model that is shipped: what it says of clips that training never saw."""

import json

import pytest

from examples.motions.generate import generate
from examples.motions.scene import MOTIONS
from videomae_jax import boxed
from videomae_jax.__main__ import main

# Training has 1 and 2; 3 is what the README's figures are of.
UNSEEN = 10
# It knows that shapes meet or part, or turn, and not which.
NOT_TOLD_APART = ({"meeting", "parting"}, {"turning clockwise", "turning anticlockwise"})


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("motions"), count=600, seed=UNSEEN)


def evaluate(capsys, manifest, *options: str) -> dict:
    assert main(["evaluate", "--data", str(manifest), "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_it_names_motions_of_clips_it_never_saw(clips, capsys):
    found = evaluate(capsys, clips)
    assert (found["count"], found["failed"]) == (600, 0)
    assert found["top1"] > 0.7
    hard = set().union(*NOT_TOLD_APART)
    accuracy = {each["label"]: each["accuracy"] for each in found["per_class"]}
    assert min(share for name, share in accuracy.items() if name not in hard) > 0.8


def test_without_the_order_of_frames_it_knows_next_to_nothing(clips, capsys):
    found = evaluate(capsys, clips, "--shuffle-frames", "0")
    moving = [each for each in found["per_class"] if each["label"] != "standing still"]
    assert len(moving) == len(MOTIONS) - 1
    right = sum(each["right"] for each in moving) / sum(each["count"] for each in moving)
    assert right < 0.25


def test_it_is_small():
    size = sum(path.stat().st_size for path in boxed.boxed_model().iterdir())
    assert size < 4 * 2**20
