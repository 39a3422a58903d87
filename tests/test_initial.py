import dataclasses
import math

import jax
import numpy as np
import pytest

from convert.translate import flatten
from tests.configs import TINY
from videomae_jax.model import VideoClassifier, VideoPretrainer, abstract_params
from videomae_jax.training.initial import draw_params

# Wide enough for a deviation to be told, and all widths different.
CONFIG = dataclasses.replace(
    TINY,
    hidden_size=48,
    intermediate_size=112,
    decoder_hidden_size=40,
    decoder_intermediate_size=72,
    num_labels=64,
    layer_scale_init_value=0.1,
)
KEY = jax.random.key(2)


@pytest.fixture(scope="module")
def pretrainer():
    return flatten(draw_params(KEY, VideoPretrainer(CONFIG)))


@pytest.fixture(scope="module")
def classifier():
    return flatten(draw_params(KEY, VideoClassifier(CONFIG)))


@pytest.mark.parametrize("model_class", [VideoClassifier, VideoPretrainer])
def test_the_tree_is_the_model_s(model_class, classifier, pretrainer):
    drawn = classifier if model_class is VideoClassifier else pretrainer
    like = flatten(abstract_params(model_class(CONFIG)))
    assert {path: (leaf.shape, leaf.dtype) for path, leaf in drawn.items()} == {
        path: (leaf.shape, leaf.dtype) for path, leaf in like.items()
    }


def test_pretraining_starts_uniform_by_the_sides_of_each_matrix(pretrainer):
    for path, leaf in pretrainer.items():
        if path.endswith("kernel") and "patch_embed" not in path:
            bound = math.sqrt(6 / sum(leaf.shape[-2:]))
            assert np.abs(leaf).max() <= bound, path
            assert np.std(leaf) == pytest.approx(bound / math.sqrt(3), rel=0.05), path
            if leaf.ndim == 3:
                assert not np.array_equal(leaf[0], leaf[1]), path


def test_fine_tuning_starts_normal_and_its_head_near_nothing(classifier):
    for path, leaf in classifier.items():
        if path.endswith("kernel") and "patch_embed" not in path:
            deviation = 2e-5 if path == "classifier/kernel" else 0.02
            assert np.std(leaf) == pytest.approx(deviation, rel=0.05), path
            assert np.abs(leaf).max() > 2.5 * deviation, path


def test_patches_start_as_torch_s_convolutions(classifier, pretrainer):
    bound = 1 / math.sqrt(CONFIG.tubelet_pixels)
    for tree in (classifier, pretrainer):
        kernel, bias = (tree[f"encoder/patch_embed/{name}"] for name in ("kernel", "bias"))
        assert 0.95 * bound < np.abs(kernel).max() <= bound
        assert np.std(kernel) == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert 0.8 * bound < np.abs(bias).max() <= bound


def test_the_rest_starts_as_ever(classifier, pretrainer):
    token = pretrainer["mask_token"]
    assert 0.01 < np.abs(token).max() <= 0.02
    for tree in (classifier, pretrainer):
        for path, leaf in tree.items():
            if path.endswith("bias") and "patch_embed" not in path:
                assert not leaf.any(), path
            elif path.endswith("scale"):
                assert (np.asarray(leaf) == 1).all(), path
            elif path.endswith("gamma"):
                np.testing.assert_allclose(leaf, 0.1)


def test_another_key_draws_other_weights(classifier):
    other = flatten(draw_params(jax.random.key(3), VideoClassifier(CONFIG)))
    same = flatten(draw_params(KEY, VideoClassifier(CONFIG)))
    path = "encoder/layers/mlp/fc1/kernel"
    np.testing.assert_array_equal(same[path], classifier[path])
    assert not np.array_equal(other[path], classifier[path])
