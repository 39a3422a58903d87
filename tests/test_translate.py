"""The weight maps and what they make of tensors: every rule by its numbers, every problem."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from benchmarks.checkpoints import (
    draw,
    hugging_face_shapes,
    mmaction2_shapes,
    original_shapes,
    v2_hub_shapes,
)
from convert.errors import ConversionError, Problems, generalize
from convert.layouts import HUGGING_FACE, LAYOUTS, MMACTION2, ORIGINAL, PARTS, V2_HUB
from convert.translate import flatten, translate, unflatten
from convert.weights import Tensor
from tests.configs import TINY
from tests.folders import ARCHITECTURES, random_tensors
from videomae_jax.model import ARCHITECTURES as MODELS
from videomae_jax.model import abstract_params

D = TINY.hidden_size


def readable(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Arrays as the readers of files hand them over."""
    return {
        name: Tensor(array.shape, str(array.dtype), lambda array=array: array)
        for name, array in arrays.items()
    }


def tree_of(arrays, layout, architecture="VideoClassifier", config=TINY) -> dict:
    """The flat parameter tree that the arrays make."""
    return flatten(translate(readable(arrays), layout, likeness(architecture, config)))


@functools.cache
def likeness(architecture, config) -> dict:
    return abstract_params(MODELS[architecture](config))


def problems_of(arrays, layout=HUGGING_FACE, architecture="VideoClassifier", config=TINY):
    with pytest.raises(ConversionError) as caught:
        tree_of(arrays, layout, architecture, config)
    return list(caught.value.problems)


SHAPES = {
    HUGGING_FACE: hugging_face_shapes,
    ORIGINAL: original_shapes,
    V2_HUB: v2_hub_shapes,
    MMACTION2: mmaction2_shapes,
}
assert set(SHAPES) == set(LAYOUTS)
# What transformers has not.
OPTIONS = {"cos_attn": True, "layer_scale_init_value": 0.1, "use_learnable_pos_emb": True}


def tensors_of(layout, architecture="VideoClassifier", config=TINY):
    """Random tensors in a layout, without the sinusoids that mmaction2 keeps with them."""
    shapes = SHAPES[layout](config, architecture)
    if not config.use_learnable_pos_emb:
        shapes.pop("backbone.pos_embed", None)
    return dict(draw(shapes, seed=1))


def original_tensors(architecture="VideoClassifier", config=TINY):
    return tensors_of(ORIGINAL, architecture, config)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("pooling", [True, False])
@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["", "options"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_every_shape_has_one_place(layout, options, architecture, pooling, biases):
    # Neither of these has pre-training.
    if architecture == "VideoPretrainer" and layout in (V2_HUB, MMACTION2):
        architecture = "VideoEncoder"
    # Nor has transformers any of the options.
    if layout is HUGGING_FACE:
        options = {}
    config = dataclasses.replace(TINY, use_mean_pooling=pooling, qkv_bias=biases, **options)
    arrays = tensors_of(layout, architecture, config)
    leaves = tree_of(arrays, layout, architecture, config)
    # As many numbers as were given, each of them somewhere: nothing twice, nothing left out.
    given = np.concatenate([array.ravel() for array in arrays.values()])
    placed = np.concatenate([leaf.ravel() for leaf in leaves.values()])
    np.testing.assert_array_equal(np.sort(placed), np.sort(given))
    assert {leaf.dtype for leaf in leaves.values()} == {np.dtype(np.float32)}


# What a block is made of, in both layouts; a number after a kernel says which third of it.
BLOCKS = {
    HUGGING_FACE: {
        "norm_1/scale": "layernorm_before.weight",
        "norm_1/bias": "layernorm_before.bias",
        "attention/qkv/kernel 0": "attention.attention.query.weight",
        "attention/qkv/kernel 1": "attention.attention.key.weight",
        "attention/qkv/kernel 2": "attention.attention.value.weight",
        "attention/qkv/query_bias": "attention.attention.q_bias",
        "attention/qkv/value_bias": "attention.attention.v_bias",
        "attention/proj/kernel": "attention.output.dense.weight",
        "attention/proj/bias": "attention.output.dense.bias",
        "norm_2/scale": "layernorm_after.weight",
        "norm_2/bias": "layernorm_after.bias",
        "mlp/fc1/kernel": "intermediate.dense.weight",
        "mlp/fc1/bias": "intermediate.dense.bias",
        "mlp/fc2/kernel": "output.dense.weight",
        "mlp/fc2/bias": "output.dense.bias",
    },
    ORIGINAL: {
        "norm_1/scale": "norm1.weight",
        "norm_1/bias": "norm1.bias",
        "attention/qkv/kernel": "attn.qkv.weight",
        "attention/qkv/query_bias": "attn.q_bias",
        "attention/qkv/value_bias": "attn.v_bias",
        "attention/proj/kernel": "attn.proj.weight",
        "attention/proj/bias": "attn.proj.bias",
        "norm_2/scale": "norm2.weight",
        "norm_2/bias": "norm2.bias",
        "mlp/fc1/kernel": "mlp.fc1.weight",
        "mlp/fc1/bias": "mlp.fc1.bias",
        "mlp/fc2/kernel": "mlp.fc2.weight",
        "mlp/fc2/bias": "mlp.fc2.bias",
    },
}
STACKS = {
    HUGGING_FACE: ("videomae.encoder.layer", "decoder.decoder_layers"),
    ORIGINAL: ("encoder.blocks", "decoder.blocks"),
}
# Both layouts call what a pre-training model has beside its blocks the same.
BESIDE_BLOCKS = {
    "encoder_to_decoder/kernel": "encoder_to_decoder.weight",
    "decoder/norm/scale": "decoder.norm.weight",
    "decoder/norm/bias": "decoder.norm.bias",
    "decoder/head/kernel": "decoder.head.weight",
    "decoder/head/bias": "decoder.head.bias",
}


@pytest.mark.parametrize("layout", [HUGGING_FACE, ORIGINAL], ids=lambda layout: layout.name)
def test_every_tensor_of_a_pretrainer_goes_where_it_belongs(layout):
    arrays = tensors_of(layout, "VideoPretrainer")
    leaves = tree_of(arrays, layout, "VideoPretrainer")

    def check(leaf, name):
        wanted = arrays[name].T if arrays[name].ndim == 2 else arrays[name]
        np.testing.assert_array_equal(leaf, wanted, err_msg=name)

    for stack, source, layer in zip(("encoder", "decoder"), STACKS[layout], (2, 1), strict=True):
        for target, name in BLOCKS[layout].items():
            path, _, third = target.partition(" ")
            leaf = leaves[f"{stack}/layers/{path}"][layer]
            if third:
                leaf = np.split(leaf, 3, axis=1)[int(third)]
            check(leaf, f"{source}.{layer}.{name}")
    for path, name in BESIDE_BLOCKS.items():
        check(leaves[path], name)
    np.testing.assert_array_equal(leaves["mask_token"], arrays["mask_token"][0, 0])


def test_heads_of_a_classifier():
    config = dataclasses.replace(TINY, use_mean_pooling=False)
    pooled, first = random_tensors(), random_tensors(config=config)
    leaves = tree_of(pooled, HUGGING_FACE)
    np.testing.assert_array_equal(leaves["classifier/kernel"], pooled["classifier.weight"].T)
    np.testing.assert_array_equal(leaves["classifier/bias"], pooled["classifier.bias"])
    np.testing.assert_array_equal(leaves["fc_norm/scale"], pooled["fc_norm.weight"])
    np.testing.assert_array_equal(leaves["fc_norm/bias"], pooled["fc_norm.bias"])
    leaves = tree_of(first, HUGGING_FACE, config=config)
    np.testing.assert_array_equal(leaves["encoder/norm/scale"], first["videomae.layernorm.weight"])
    np.testing.assert_array_equal(leaves["encoder/norm/bias"], first["videomae.layernorm.bias"])


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_the_patch_kernel_takes_a_tubelet_in_the_order_time_height_width_colour(layout):
    config = dataclasses.replace(TINY, patch_size=(4, 5), tubelet_size=3)
    arrays = tensors_of(layout, "VideoEncoder", config)
    (convolution,) = (array for array in arrays.values() if array.ndim == 5)
    kernel = tree_of(arrays, layout, "VideoEncoder", config)["patch_embed/kernel"]
    row = 0
    for time in range(3):
        for high in range(4):
            for wide in range(5):
                for colour in range(3):
                    wanted = convolution[:, colour, time, high, wide]
                    np.testing.assert_array_equal(kernel[row], wanted)
                    row += 1
    assert row == len(kernel)


def test_both_spellings_of_the_biases_give_the_same_tree():
    arrays = random_tensors()
    renamed = {
        name.replace(".q_bias", ".query.bias").replace(".v_bias", ".value.bias"): array
        for name, array in arrays.items()
    }
    assert set(renamed) != set(arrays)
    wanted, given = tree_of(arrays, HUGGING_FACE), tree_of(renamed, HUGGING_FACE)
    assert list(given) == list(wanted)
    jax.tree.map(np.testing.assert_array_equal, given, wanted)


@pytest.mark.parametrize(
    "prefix",
    ["module.", "backbone.", "encoder.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."],
)
def test_prefixes_of_original_files_are_taken_off(prefix):
    arrays = original_tensors()
    wanted = tree_of(arrays, ORIGINAL)
    given = tree_of({prefix + name: array for name, array in arrays.items()}, ORIGINAL)
    jax.tree.map(np.testing.assert_array_equal, given, wanted)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_precisions_become_float32(dtype):
    arrays = {name: array.astype(dtype) for name, array in random_tensors().items()}
    leaves = tree_of(arrays, HUGGING_FACE)
    wanted = tree_of({k: v.astype(np.float32) for k, v in arrays.items()}, HUGGING_FACE)
    jax.tree.map(np.testing.assert_array_equal, leaves, wanted)


def test_every_problem_at_once():
    arrays = random_tensors()
    block = "videomae.encoder.layer.1"
    arrays |= {
        "videomae.pooler.weight": np.zeros((3, 5), np.float32),
        f"{block}.attention.attention.query.bias": np.ones(D, np.float32),
        f"{block}.attention.attention.relative_table": np.zeros((3, 5), np.float32),
        "videomae.encoder.layer.3.layernorm_before.bias": np.zeros(D, np.float32),
        "decoder.norm.weight": np.zeros(20, np.float32),
        "fc_norm.bias": np.zeros(D + 1, np.float32),
        "classifier.bias": np.arange(TINY.num_labels),
    }
    del arrays["fc_norm.weight"], arrays[f"{block}.attention.attention.key.weight"]
    arrays["classifier.weight"][2, 3] = np.nan
    arrays[f"{block}.intermediate.dense.bias"][0] = -np.inf
    kernel = "encoder/layers/attention/qkv"
    assert sorted(problems_of(arrays)) == [
        f"filled twice: {kernel}/query_bias by {block}.attention.attention.q_bias and "
        f"{block}.attention.attention.query.bias",
        "never filled: encoder/layers/attention/qkv/kernel, key, layer 1",
        "never filled: fc_norm/scale",
        "no rule: decoder.norm.weight [20] has no place in this network",
        f"no rule: {block}.attention.attention.relative_table [3, 5]",
        "no rule: videomae.encoder.layer.3.layernorm_before.bias [24] is beyond the config's "
        "3 layers",
        "no rule: videomae.pooler.weight [3, 5]",
        "not a float: classifier.bias is int64",
        "not finite: classifier.weight holds NaN or Inf",
        f"not finite: {block}.intermediate.dense.bias holds NaN or Inf",
        "wrong shape: fc_norm.bias [25] makes [25], fc_norm/bias is [24]",
    ]


def test_a_number_too_large_for_the_dtype():
    arrays = random_tensors()
    arrays["classifier.bias"] = arrays["classifier.bias"].astype(np.float64)
    arrays["classifier.bias"][0] = 1e300
    assert problems_of(arrays) == ["too large: classifier.bias doesn't fit float32"]
    arrays["classifier.bias"][0] = 7e4
    with pytest.raises(ConversionError, match=r"^too large: classifier\.bias doesn't fit float16$"):
        translate(
            readable(arrays), HUGGING_FACE, likeness("VideoClassifier", TINY), dtype="float16"
        )


def test_a_missing_layer_is_said_once_a_tensor():
    arrays = {
        name: array for name, array in random_tensors().items() if "encoder.layer.1." not in name
    }
    problems = problems_of(arrays)
    assert len(problems) == 15
    assert all(problem.startswith("never filled: encoder/layers/") for problem in problems)
    assert all(problem.endswith(", layer 1") for problem in problems)


def test_the_same_problem_in_many_layers_is_said_once():
    arrays = random_tensors()
    for layer in range(TINY.num_hidden_layers):
        del arrays[f"videomae.encoder.layer.{layer}.output.dense.bias"]
        arrays[f"videomae.encoder.layer.{layer}.gamma"] = np.zeros(D, np.float32)
        arrays[f"videomae.encoder.layer.{layer}.intermediate.dense.bias"] *= np.inf
    assert problems_of(arrays) == [
        "no rule: videomae.encoder.layer.{n}.gamma [24], layers 0-2",
        "never filled: encoder/layers/mlp/fc2/bias, layers 0-2",
        "not finite: videomae.encoder.layer.{n}.intermediate.dense.bias holds NaN or Inf, "
        "layers 0-2",
    ]


def test_another_width_is_a_problem_of_shapes():
    config = dataclasses.replace(TINY, hidden_size=32)
    problems = problems_of(random_tensors(), config=config)
    assert all(problem.startswith("wrong shape: ") for problem in problems)
    assert "wrong shape: fc_norm.weight [24] makes [24], fc_norm/scale is [32]" in problems
    assert (
        "wrong shape: videomae.encoder.layer.{n}.attention.attention.query.weight [24, 24] makes "
        "[24, 24], encoder/layers/attention/qkv/kernel, query is [32, 32], layers 0-2"
    ) in problems


def test_original_kernels_are_filled_whole():
    arrays = original_tensors()
    del arrays["blocks.0.attn.qkv.weight"]
    problems = problems_of(arrays, ORIGINAL)
    assert problems == ["never filled: encoder/layers/attention/qkv/kernel, layer 0"]


def test_a_leaf_without_a_rule_is_never_filled():
    layout = dataclasses.replace(HUGGING_FACE, rules=HUGGING_FACE.rules[:-9])
    problems = problems_of(random_tensors("VideoPretrainer"), layout, "VideoPretrainer")
    assert "never filled: decoder/head/bias" in problems


def test_a_billion_layers_cost_nothing():
    shapes = {"encoder/layers/norm_1/scale": jax.ShapeDtypeStruct((10**9, D), np.float32)}
    arrays = {"encoder.layer.5.layernorm_before.weight": np.ones(D, np.float32)}
    with pytest.raises(ConversionError) as caught:
        translate(readable(arrays), HUGGING_FACE, shapes)
    (problem,) = caught.value.problems
    assert problem == "never filled: encoder/layers/norm_1/scale, layers 0-4, 6-999999999"


@pytest.mark.parametrize(
    ("name", "pattern", "layer"),
    [
        ("blocks.11.norm1.weight", "blocks.{n}.norm1.weight", 11),
        ("a.1.b.2.c", "a.{n}.b.2.c", 1),
        ("norm1.weight", "norm1.weight", None),
        (f"blocks.{'9' * 5000}.x", f"blocks.{'9' * 5000}.x", None),
    ],
)
def test_generalize(name, pattern, layer):
    assert generalize(name) == (pattern, layer)


def test_problems_spell_layers():
    problems = Problems()
    assert not problems
    for layer in (5, 3, 4, 9):
        problems.add_tensor("no rule", f"blocks.{layer}.x", " [2]")
    problems.add("never filled: y", 0, 3)
    problems.add("never filled: y", 4, 11)
    problems.add("never filled: z", 7)
    problems.add("plain")
    assert list(problems.lines()) == [
        "no rule: blocks.{n}.x [2], layers 3-5, 9",
        "never filled: y, layers 0-11",
        "never filled: z, layer 7",
        "plain",
    ]


def test_flatten_and_unflatten():
    tree = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert flatten(tree) == {"a/b": 1, "a/c/d": 2, "e": 3}
    assert unflatten(flatten(tree)) == tree


def test_parts_are_the_order_of_the_packed_kernel():
    assert PARTS == ("query", "key", "value")
