"""VideoEncoder and VideoClassifier against transformers' models, stage by stage."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import torch
import transformers

from convert.translate import flatten
from tests.parity.reference import (
    TINY,
    TOLERANCE,
    assert_agree,
    build,
    compare,
    compare_with,
    config_of,
    mutated_tensors,
    our_stages,
    quieten,
    random_clips,
    random_mask,
    reference_stages,
    relative_l2,
    to_torch,
    translated,
)
from videomae_jax.config import VideoMAEConfig
from videomae_jax.layers import Attention, Block
from videomae_jax.model import VideoClassifier, VideoEncoder, VideoPretrainer, abstract_params

# Knobs of the encoder and the classifier, in transformers' names.
KNOBS = {
    "none": {},
    "image_size, a number": {"image_size": 12},
    "image_size, tall": {"image_size": [24, 8]},
    "patch_size, wide": {"patch_size": [3, 5]},
    "patch_size, tall": {"patch_size": [6, 4]},
    "num_channels, 1": {"num_channels": 1},
    "num_channels, 4": {"num_channels": 4},
    "num_frames, 2": {"num_frames": 2},
    "num_frames, 18": {"num_frames": 18},
    "tubelet_size, 1": {"num_frames": 5, "tubelet_size": 1},
    "tubelet_size, 3": {"num_frames": 6, "tubelet_size": 3},
    "hidden_size, odd": {"hidden_size": 45, "num_attention_heads": 5},
    "num_hidden_layers, 1": {"num_hidden_layers": 1},
    "num_hidden_layers, 5": {"num_hidden_layers": 5},
    "num_attention_heads, 1": {"num_attention_heads": 1},
    "num_attention_heads, all": {"num_attention_heads": 42},
    "intermediate_size, small": {"intermediate_size": 5},
    "hidden_act, gelu_new": {"hidden_act": "gelu_new"},
    "hidden_act, relu": {"hidden_act": "relu"},
    "hidden_act, silu": {"hidden_act": "silu"},
    "hidden_dropout_prob": {"hidden_dropout_prob": 0.3},
    "attention_probs_dropout_prob": {"attention_probs_dropout_prob": 0.4},
    "layer_norm_eps, 1e-6": {"layer_norm_eps": 1e-6},
    "layer_norm_eps, 1e-2": {"layer_norm_eps": 1e-2},
    "qv_bias": {"qv_bias": False},
    "qkv_bias": {"qkv_bias": False},
    "use_mean_pooling": {"use_mean_pooling": False},
    "num_labels, 0": {"num_labels": 0},
    "num_labels, 0, of a token": {"num_labels": 0, "use_mean_pooling": False},
    "num_labels, 1": {"num_labels": 1},
    "num_labels, 2": {"num_labels": 2},
    "problem_type": {"problem_type": "multi_label_classification"},
}
# These act on nothing but fresh weights, or on the pre-trainer: see below and test_pretrainer.py.
ELSEWHERE = {
    "initializer_range",
    "norm_pix_loss",
    "decoder_hidden_size",
    "decoder_intermediate_size",
    "decoder_num_attention_heads",
    "decoder_num_hidden_layers",
}


@pytest.fixture(scope="module")
def classifier():
    return build(VideoClassifier, **TINY)


def our_stages_of(reference, clips, **replaced) -> dict:
    config = dataclasses.replace(config_of(reference), **replaced)
    model = VideoClassifier(config)
    return our_stages(model, translated(reference, model), clips)


@pytest.mark.parametrize("fields", KNOBS.values(), ids=KNOBS)
def test_classifier(fields):
    assert_agree(compare(VideoClassifier, **fields))


@pytest.mark.parametrize("use_mean_pooling", [True, False], ids=["no norm", "norm"])
@pytest.mark.parametrize("masked", [True, False], ids=["visible tokens", "all tokens"])
def test_encoder(masked, use_mean_pooling):
    assert_agree(compare(VideoEncoder, masked=masked, use_mean_pooling=use_mean_pooling))


def test_every_knob_is_tested_and_has_transformers_default():
    knobs = set(transformers.VideoMAEConfig.__annotations__) - {"model_type"}
    assert knobs <= {name.split(",")[0] for name in KNOBS} | ELSEWHERE
    assert VideoMAEConfig.from_hf(transformers.VideoMAEConfig().to_dict()) == VideoMAEConfig()


REFUSED = {
    "hidden_act": ["prelu", "xielu", "no such", None],
    "image_size": [[13, 20], [12, 21], 0, True, "12", [12, 20, 3], [12.0, 20.0]],
    "patch_size": [5, [4, 3], -4],
    "num_frames": [7, 8.0, True],
    "tubelet_size": [3, 0],
    "num_channels": [0, True],
    "hidden_size": [41, 0],
    "num_attention_heads": [4, 0],
    "num_hidden_layers": [0, True],
    "intermediate_size": [0, "50"],
    "hidden_dropout_prob": [1.0, -0.1, True],
    "attention_probs_dropout_prob": [1.5, "0.1"],
    "layer_norm_eps": [-1e-12, float("nan"), None],
    "initializer_range": [-0.02, float("inf")],
    "qv_bias": [1, "yes"],
    "use_mean_pooling": [1],
    "norm_pix_loss": [0],
    "num_labels": [-1, True, 8],
    "problem_type": ["ranking"],
    "decoder_num_hidden_layers": [0],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in REFUSED.items() for value in values]
)
def test_refused_by_name(name, value):
    fields = transformers.VideoMAEConfig(**TINY).to_dict() | {name: value}
    with pytest.raises(ValueError, match=name.replace("qv_bias", "q[k]?v_bias")):
        VideoMAEConfig.from_hf(fields)


def test_a_decoder_that_no_pretrainer_has_is_refused_by_the_pretrainer_alone():
    fields = transformers.VideoMAEConfig(**TINY | {"decoder_hidden_size": 21}).to_dict()
    config = VideoMAEConfig.from_hf(fields)
    abstract_params(VideoClassifier(config))
    with pytest.raises(ValueError, match="decoder_hidden_size 21"):
        abstract_params(VideoPretrainer(config))


# What the tolerance would let pass, were it wider: each of these is a likely mistake.


@pytest.mark.parametrize(
    "wrong",
    [
        {"hidden_act": "gelu_new"},
        {"num_attention_heads": 7},
        {"num_attention_heads": 3},
    ],
    ids=str,
)
def test_a_wrong_config_is_seen_in_the_logits(classifier, wrong):
    clips = random_clips(config_of(classifier))
    wanted = reference_stages(classifier, clips)["logits"]
    error = relative_l2(our_stages_of(classifier, clips, **wrong)["logits"], wanted)
    print(f"{wrong}: {error:.1e}")
    assert error > 10 * TOLERANCE


@pytest.mark.parametrize("fields", [{}, {"use_mean_pooling": False}], ids=["mean", "token"])
def test_every_wrong_tensor_is_seen_in_the_logits(fields):
    reference = build(VideoClassifier, **TINY | fields)
    clips = random_clips(config_of(reference))
    given = our_stages_of(reference, clips)["logits"]
    seen = {
        mistake: relative_l2(given, reference_stages(reference, clips)["logits"])
        for mistake in mutated_tensors(reference)
    }
    assert relative_l2(given, reference_stages(reference, clips)["logits"]) <= TOLERANCE
    print(f"least: {min((error, mistake) for mistake, error in seen.items())}")
    assert len(seen) == len(list(reference.parameters())) + 2 * TINY["num_hidden_layers"]
    assert not {mistake: error for mistake, error in seen.items() if error < 100 * TOLERANCE}


@pytest.mark.parametrize(
    ("eps", "fields"), [(1e-12, {}), (1e-6, {"use_mean_pooling": False})], ids=str
)
def test_every_wrong_eps_is_seen_in_the_logits(fields, eps):
    """One token without much variance: an eps that is lost in other tests stands out here."""
    one_token = {"image_size": 4, "num_frames": 2, "layer_norm_eps": eps}
    reference = build(VideoClassifier, **TINY | one_token | fields)
    quieten(reference)
    assert_agree(compare_with(reference, VideoClassifier))
    clips = random_clips(config_of(reference))
    given = our_stages_of(reference, clips)["logits"]
    norms = {
        name: module
        for name, module in reference.named_modules()
        if isinstance(module, torch.nn.LayerNorm)
    }
    assert len(norms) == 2 * TINY["num_hidden_layers"] + 1
    for name, norm in norms.items():
        right = norm.eps
        for norm.eps in {1e-12, 1e-6, 1e-5} - {right}:
            error = relative_l2(given, reference_stages(reference, clips)["logits"])
            print(f"{name} eps {right:g} as {norm.eps:g}: {error:.1e}")
            assert error > TOLERANCE, name
        norm.eps = right


@pytest.mark.parametrize(
    "wrong", [{"layer_norm_eps": 1e-6}, {"fc_norm_eps": 1e-6}, {"fc_norm_eps": 1e-12}], ids=str
)
def test_a_wrong_eps_in_the_config_is_seen_in_the_logits(wrong):
    reference = build(VideoClassifier, **TINY | {"image_size": 4, "num_frames": 2})
    quieten(reference)
    clips = random_clips(config_of(reference))
    wanted = reference_stages(reference, clips)["logits"]
    error = relative_l2(our_stages_of(reference, clips, **wrong)["logits"], wanted)
    print(f"{wrong}: {error:.1e}")
    assert error > 5 * TOLERANCE


# Fresh weights.


@pytest.mark.parametrize("initializer_range", [0.02, 0.3])
def test_fresh_weights_are_distributed_alike(initializer_range):
    fields = TINY | {"initializer_range": initializer_range}
    torch.manual_seed(0)
    reference = transformers.VideoMAEForPreTraining(transformers.VideoMAEConfig(**fields))
    model = VideoPretrainer(config_of(reference), num_masked=1)
    clips = np.zeros((1, *model.config.clip_shape), np.float32)
    mask = np.arange(model.config.num_tokens)[None] < 1
    ours = flatten(jax.jit(model.init)(jax.random.key(0), clips, mask)["params"])
    for path, theirs in flatten(translated(reference, model)).items():
        for values in (np.asarray(ours[path]), theirs):
            if "kernel" in path:
                # Within five standard errors; q, k and v alike.
                for part in np.split(values, 3, axis=-1) if "qkv" in path else [values]:
                    error = 5 * initializer_range / np.sqrt(part.size)
                    assert abs(part.mean()) < error, path
                    assert abs(part.std() - initializer_range) < error / np.sqrt(2), path
            else:
                np.testing.assert_array_equal(values, float(path.endswith("scale")), path)


# Hidden states and attention maps cost the plain call nothing.


def jaxpr_of(model_class, method="__call__"):
    config = VideoMAEConfig.from_hf(transformers.VideoMAEConfig(**TINY).to_dict())
    # One form of attention, which has no loops of its own.
    model, rest = model_class(config, attention_backend="xla"), ()
    if model_class is VideoPretrainer:
        model = model.clone(num_masked=40)
        rest = (jax.ShapeDtypeStruct((2, config.num_tokens), bool),)
    clips = jax.ShapeDtypeStruct((2, *config.clip_shape), np.float32)
    apply = functools.partial(model.apply, method=method)
    return jax.make_jaxpr(apply)({"params": abstract_params(model)}, clips, *rest)


def scans_in(jaxpr) -> list:
    scans = [equation for equation in jaxpr.eqns if equation.primitive.name == "scan"]
    for equation in jaxpr.eqns:
        for value in equation.params.values():
            for inner in value if isinstance(value, (list, tuple)) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                scans += scans_in(inner) if hasattr(inner, "eqns") else []
    return scans


@pytest.mark.parametrize("model_class", [VideoEncoder, VideoClassifier, VideoPretrainer])
def test_the_plain_call_keeps_nothing_of_the_layers(model_class):
    def kept(method):
        scans = scans_in(jaxpr_of(model_class, method))
        return [len(scan.outvars) - scan.params["num_carry"] for scan in scans]

    assert kept("__call__") == ([0, 0] if model_class is VideoPretrainer else [0])
    assert kept("hidden_states") == kept("attention_maps") == [1]


@pytest.mark.parametrize("model_class", [VideoEncoder, VideoClassifier, VideoPretrainer])
def test_the_plain_call_is_the_same_without_the_other_methods(model_class, monkeypatch):
    plain = str(jaxpr_of(model_class))
    for owner, names in {
        VideoEncoder: ["hidden_states", "attention_maps"],
        VideoClassifier: ["hidden_states", "attention_maps"],
        VideoPretrainer: ["hidden_states", "attention_maps"],
        Block: ["maps"],
        Attention: ["maps"],
    }.items():
        for name in names:
            monkeypatch.delattr(owner, name)
    assert str(jaxpr_of(model_class)) == plain


# Dropout in training, of which only the distribution can be compared.

COPIES = 2000
DROPOUT = TINY | {"image_size": [4, 8], "num_frames": 4, "hidden_size": 12, "num_hidden_layers": 1}


@pytest.mark.parametrize(
    ("model_class", "layers"), [(VideoClassifier, 1), (VideoClassifier, 2), (VideoPretrainer, 1)]
)
@pytest.mark.parametrize("name", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_dropout_is_distributed_as_in_torch(name, model_class, layers):
    """Mean and deviation of every output over many draws, from copies of one clip in a batch."""
    sizes = {"num_hidden_layers": layers, "decoder_num_hidden_layers": layers}
    reference = build(model_class, **DROPOUT | sizes | {name: 0.3}).train()
    config = config_of(reference)
    # One form of attention, which has no loops of its own.
    model, rest = model_class(config, attention_backend="xla"), ()
    if model_class is VideoPretrainer:
        mask = random_mask(config, batch=1)
        model, rest = model.clone(num_masked=int(mask.sum())), (np.tile(mask, (COPIES, 1)),)
    variables = {"params": translated(reference, model)}
    clips = np.tile(random_clips(config, batch=1), (COPIES, 1, 1, 1, 1))
    with torch.inference_mode():
        theirs = reference(to_torch(clips), *map(torch.from_numpy, rest)).logits.numpy()

    def draw(rate: float) -> np.ndarray:
        apply = jax.jit(model.clone(config=dataclasses.replace(config, **{name: rate})).apply)
        return np.asarray(apply(variables, clips, *rest, rngs={"dropout": jax.random.key(1)}))

    def apart(ours: np.ndarray) -> tuple[float, float]:
        error = np.sqrt((ours.var(axis=0) + theirs.var(axis=0)) / COPIES)
        means = np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) / error
        return means.max(), np.abs(ours.std(axis=0) / theirs.std(axis=0) - 1).max()

    means, deviations = apart(draw(0.3))
    assert means < 5
    assert deviations < 0.12
    # Another rate would show; so would one draw for both layers (22 %).
    assert apart(draw(0.2))[1] > 0.12
    print(f"means {means:.1f} standard errors apart, deviations {deviations:.1%}")


@pytest.mark.parametrize("name", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_dropout_needs_a_key_and_is_reproducible(name):
    reference = build(VideoClassifier, **DROPOUT | {name: 0.3})
    model = VideoClassifier(config_of(reference))
    variables = {"params": translated(reference, model)}
    clips = random_clips(model.config)
    apply = jax.jit(model.apply)
    plain = apply(variables, clips)
    one, again, other = (
        apply(variables, clips, rngs={"dropout": jax.random.key(seed)}) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, again)
    assert relative_l2(one, plain) > 1e-2
    assert relative_l2(one, other) > 1e-2
