import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.configs import TINY, random_clips, random_params
from videomae_jax.masking import tube_mask
from videomae_jax.model import VideoClassifier, VideoEncoder, VideoPretrainer, abstract_params
from videomae_jax.tokens import sinusoid_table

CLIPS = random_clips(TINY)
MASK = np.asarray(tube_mask(jax.random.key(1), TINY, batch=2, ratio=0.6))
TOKENS, VISIBLE, MASKED = 45, 18, 27


def variables(model, seed=0):
    return {"params": random_params(abstract_params(model), seed=seed)}


def test_the_plain_call_is_jit_of_apply():
    model = VideoClassifier(TINY)
    weights = variables(model)
    logits = jax.jit(model.apply)(weights, CLIPS)
    assert (logits.shape, logits.dtype) == ((2, 7), jnp.float32)
    np.testing.assert_allclose(logits, model.apply(weights, CLIPS), rtol=0, atol=2e-6)


def test_shapes_of_every_call():
    encoder, classifier = VideoEncoder(TINY), VideoClassifier(TINY)
    assert encoder.apply(variables(encoder), CLIPS).shape == (2, TOKENS, 24)
    weights = variables(classifier)
    assert classifier.apply(weights, CLIPS, method="hidden_states").shape == (4, 2, TOKENS, 24)
    assert classifier.apply(weights, CLIPS, method="attention_maps").shape == (
        *(3, 2, 2),
        *(TOKENS, TOKENS),
    )
    pretrainer = VideoPretrainer(TINY)
    weights = variables(pretrainer)
    assert pretrainer.apply(weights, CLIPS, MASK).shape == (2, MASKED, 96)
    states = pretrainer.apply(weights, CLIPS, MASK, method="hidden_states")
    assert states.shape == (4, 2, VISIBLE, 24)
    maps = pretrainer.apply(weights, CLIPS, MASK, method="attention_maps")
    assert maps.shape == (3, 2, 2, VISIBLE, VISIBLE)
    np.testing.assert_allclose(maps.sum(-1), 1.0, rtol=0, atol=1e-6)


def test_layers_are_stacked_and_differ():
    model = VideoClassifier(TINY)
    params = model.init(jax.random.key(0), CLIPS)["params"]
    kernel = params["encoder"]["layers"]["attention"]["qkv"]["kernel"]
    assert kernel.shape == (3, 24, 72)
    assert not np.array_equal(kernel[0], kernel[1])


def test_the_last_hidden_state_is_what_the_encoder_returns():
    model = VideoEncoder(TINY)
    weights = variables(model)
    states = model.apply(weights, CLIPS, method="hidden_states")
    np.testing.assert_allclose(states[-1], model.apply(weights, CLIPS), rtol=0, atol=2e-6)
    np.testing.assert_allclose(
        states[0], model.apply(weights, CLIPS, method="embed"), rtol=0, atol=2e-6
    )


def test_visible_tokens_are_encoded_as_if_alone():
    model = VideoEncoder(TINY)
    weights = variables(model)
    everything = jnp.tile(jnp.arange(TOKENS), (2, 1))
    np.testing.assert_allclose(
        model.apply(weights, CLIPS, everything), model.apply(weights, CLIPS), rtol=0, atol=2e-6
    )


def test_the_loop_over_layers_stays_a_loop():
    model = VideoClassifier(TINY, attention_backend="xla")
    jaxpr = str(jax.make_jaxpr(model.apply)(variables(model), CLIPS))
    assert len(re.findall(r"\bscan\[", jaxpr)) == 1


@pytest.mark.parametrize(
    ("clips", "words"),
    [
        (CLIPS[0], "clips must be [B, T, H, W, C] = [B, 6, 12, 20, 3], got [6, 12, 20, 3]"),
        (CLIPS.transpose(0, 1, 4, 2, 3), "got [2, 6, 3, 12, 20]"),
        (CLIPS[:, :4], "got [2, 4, 12, 20, 3]"),
        ((CLIPS > 0).astype(np.uint8), "floating point, normalised by the checkpoint's preprocess"),
    ],
)
def test_clips_that_do_not_fit_are_refused_at_the_door(clips, words):
    model = VideoClassifier(TINY)
    with pytest.raises(ValueError, match=re.escape(words)):
        model.apply(variables(model), clips)
    with pytest.raises(ValueError, match=re.escape(words)):
        jax.jit(model.apply)(variables(model), clips)


def test_masks_that_do_not_fit_are_refused_at_the_door():
    model = VideoPretrainer(TINY)
    weights = variables(model)
    with pytest.raises(ValueError, match=re.escape("bool [B, L] = [2, 45], got bool [45]")):
        model.apply(weights, CLIPS, MASK[0])
    with pytest.raises(ValueError, match="got int32"):
        model.apply(weights, CLIPS, MASK.astype(np.int32))
    with pytest.raises(ValueError, match="num_masked"):
        jax.jit(model.apply)(weights, CLIPS, MASK)
    with pytest.raises(ValueError, match="must hide 5 tokens a row, got 27"):
        VideoPretrainer(TINY, num_masked=5).apply(weights, CLIPS, MASK)


def test_a_decoder_that_does_not_divide_is_refused_when_used():
    config = dataclasses.replace(TINY, decoder_num_attention_heads=3)
    abstract_params(VideoClassifier(config))
    with pytest.raises(ValueError, match="decoder_hidden_size 20 is not a multiple"):
        abstract_params(VideoPretrainer(config))


def test_pretraining_under_jit_with_the_count_said():
    eager, model = VideoPretrainer(TINY), VideoPretrainer(TINY, num_masked=MASKED)
    weights = variables(eager)
    compiled = jax.jit(model.apply)
    np.testing.assert_allclose(
        compiled(weights, CLIPS, MASK), eager.apply(weights, CLIPS, MASK), rtol=0, atol=1e-5
    )
    other = MASK.copy()
    other[1, np.flatnonzero(~MASK[1])[0]] = True
    predictions = compiled(weights, CLIPS, other)
    assert np.isfinite(predictions[0]).all()
    assert np.isnan(predictions[1]).all()


def test_hidden_pixels_do_not_leak_into_the_predictions():
    model = VideoPretrainer(TINY)
    weights = variables(model)
    from videomae_jax.tokens import clips_from_tubelets, tubelets

    tokens = np.array(tubelets(jnp.asarray(CLIPS), TINY))
    tokens[MASK] = 100.0
    changed = np.asarray(clips_from_tubelets(jnp.asarray(tokens), TINY))
    np.testing.assert_array_equal(
        model.apply(weights, CLIPS, MASK), model.apply(weights, changed, MASK)
    )


def test_no_labels_gives_the_pooled_features():
    model = VideoClassifier(dataclasses.replace(TINY, num_labels=0))
    weights = variables(model)
    assert set(weights["params"]) == {"encoder", "fc_norm"}
    assert model.apply(weights, CLIPS).shape == (2, 24)


def test_without_mean_pooling_the_first_normed_token_counts():
    config = dataclasses.replace(TINY, use_mean_pooling=False, num_labels=0)
    model = VideoClassifier(config)
    weights = variables(model)
    assert set(weights["params"]["encoder"]) == {"patch_embed", "layers", "norm"}
    tokens = VideoEncoder(config).apply({"params": weights["params"]["encoder"]}, CLIPS)
    np.testing.assert_allclose(model.apply(weights, CLIPS), tokens[:, 0], rtol=0, atol=2e-6)


def test_without_qkv_bias_there_is_no_such_parameter():
    model = VideoClassifier(dataclasses.replace(TINY, qkv_bias=False))
    assert set(abstract_params(model)["encoder"]["layers"]["attention"]["qkv"]) == {"kernel"}


@pytest.mark.parametrize("field", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_dropout_acts_when_a_key_is_given_and_only_then(field):
    plain, model = VideoClassifier(TINY), VideoClassifier(dataclasses.replace(TINY, **{field: 0.5}))
    weights = variables(model)
    still = plain.apply(weights, CLIPS)
    np.testing.assert_array_equal(model.apply(weights, CLIPS), still)
    dropped = [model.apply(weights, CLIPS, rngs={"dropout": jax.random.key(k)}) for k in (0, 0, 1)]
    np.testing.assert_array_equal(dropped[0], dropped[1])
    assert not np.array_equal(dropped[0], dropped[2])
    assert not np.array_equal(dropped[0], still)


def test_fresh_weights_have_the_deviation_the_config_says():
    config = dataclasses.replace(
        TINY, hidden_size=96, intermediate_size=160, initializer_range=0.05
    )
    params = VideoClassifier(config).init(jax.random.key(0), CLIPS)["params"]
    layers = params["encoder"]["layers"]
    assert np.std(layers["mlp"]["fc1"]["kernel"]) == pytest.approx(0.05, rel=0.05)
    assert np.std(layers["attention"]["qkv"]["kernel"]) == pytest.approx(0.05, rel=0.05)
    assert not np.any(layers["mlp"]["fc1"]["bias"])
    assert np.all(np.asarray(layers["norm_1"]["scale"]) == 1.0)


def test_an_empty_batch_has_no_predictions():
    model = VideoClassifier(TINY)
    assert model.apply(variables(model), CLIPS[:0]).shape == (0, 7)


# --- options of the original code and VideoMAE V2

OPTIONS = {"cos_attn": True, "layer_scale_init_value": 0.1, "use_learnable_pos_emb": True}
WIDE = dataclasses.replace(TINY, **OPTIONS)


def test_fresh_options_start_as_the_config_says():
    params = VideoClassifier(WIDE).init(jax.random.key(0), CLIPS)["params"]["encoder"]
    layers = params["layers"]
    np.testing.assert_allclose(layers["attention"]["logit_scale"], np.full((3, 2), np.log(10)))
    for branch in ("scale_1", "scale_2"):
        np.testing.assert_allclose(layers[branch]["gamma"], np.full((3, 24), 0.1))
    assert np.std(params["pos_embed"]) == pytest.approx(0.02, rel=0.1)


def test_learnt_positions_take_the_place_of_the_sinusoids():
    plain, model = (
        VideoEncoder(TINY),
        VideoEncoder(dataclasses.replace(TINY, use_learnable_pos_emb=True)),
    )
    weights = variables(plain)
    table = sinusoid_table(TOKENS, 24)
    learnt = {"params": weights["params"] | {"pos_embed": table}}
    np.testing.assert_array_equal(model.apply(learnt, CLIPS), plain.apply(weights, CLIPS))
    other = {"params": weights["params"] | {"pos_embed": table[::-1]}}
    assert np.abs(model.apply(other, CLIPS) - plain.apply(weights, CLIPS)).max() > 1e-3


def test_visible_tokens_have_their_own_learnt_positions():
    model = VideoEncoder(dataclasses.replace(TINY, use_learnable_pos_emb=True))
    weights = variables(model)
    visible = jnp.array([[3, 17, 44], [0, 1, 2]])
    everything = model.apply(weights, CLIPS, method="embed")
    given = model.apply(weights, CLIPS, visible, method="embed")
    wanted = np.stack([row[chosen] for row, chosen in zip(everything, visible, strict=True)])
    np.testing.assert_allclose(given, wanted, rtol=0, atol=1e-5)


def test_layer_scale_is_a_factor_on_the_last_product_of_each_branch():
    plain = VideoEncoder(TINY)
    scaled = VideoEncoder(dataclasses.replace(TINY, layer_scale_init_value=0.1))
    weights = variables(scaled)
    folded = jax.tree.map(np.copy, weights["params"])
    for scale, branch in (("scale_1", ("attention", "proj")), ("scale_2", ("mlp", "fc2"))):
        gamma = folded["layers"].pop(scale)["gamma"]
        dense = folded["layers"][branch[0]][branch[1]]
        dense["kernel"] *= gamma[:, None, :]
        dense["bias"] *= gamma
    np.testing.assert_allclose(
        scaled.apply(weights, CLIPS), plain.apply({"params": folded}, CLIPS), rtol=0, atol=5e-6
    )


def test_all_options_at_once_in_every_call():
    pretrainer, classifier = VideoPretrainer(WIDE), VideoClassifier(WIDE)
    weights = variables(pretrainer)
    assert pretrainer.apply(weights, CLIPS, MASK).shape == (2, MASKED, 96)
    weights = variables(classifier)
    maps = classifier.apply(weights, CLIPS, method="attention_maps")
    np.testing.assert_allclose(maps.sum(-1), 1.0, rtol=0, atol=1e-6)
    # Not what the plain attention would attend to.
    plain = VideoClassifier(dataclasses.replace(WIDE, cos_attn=False))
    assert np.abs(plain.apply(weights, CLIPS, method="attention_maps") - maps).max() > 1e-3
    states = classifier.apply(weights, CLIPS, method="hidden_states")
    tokens = classifier.apply(weights, states[-1], method="pool")
    assert tokens.shape == (2, 24)


def test_options_have_gradients():
    model = VideoClassifier(WIDE)
    weights = variables(model)

    def loss(params):
        return (model.apply({"params": params}, CLIPS) ** 2).sum()

    gradients = jax.grad(loss)(weights["params"])["encoder"]
    layers = gradients["layers"]
    for leaf in (
        gradients["pos_embed"],
        layers["attention"]["logit_scale"],
        layers["scale_1"]["gamma"],
        layers["scale_2"]["gamma"],
    ):
        assert np.isfinite(leaf).all()
        assert np.all(leaf != 0)


# In which precision.


@pytest.mark.parametrize("model_class", [VideoEncoder, VideoClassifier, VideoPretrainer])
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_bfloat16_is_near_float32_and_results_are_float32(model_class, stored):
    inputs = (CLIPS, MASK) if model_class is VideoPretrainer else (CLIPS,)
    plain = model_class(TINY)
    params = random_params(abstract_params(plain, stored))
    wanted = np.asarray(plain.apply({"params": params}, *inputs), np.float32)
    given = model_class(TINY, dtype="bfloat16").apply({"params": params}, *inputs)
    # Tokens are activations, logits and predictions are not.
    assert given.dtype == (jnp.bfloat16 if model_class is VideoEncoder else jnp.float32)
    given = np.asarray(given, np.float32)
    error = np.linalg.norm(given - wanted) / np.linalg.norm(wanted)
    assert 1e-5 < error < 0.02


def test_in_bfloat16_sums_norms_and_softmax_are_float32():
    """No product, sum or exponential of the program has a bfloat16 result, but casts have."""
    model = VideoClassifier(TINY, dtype=jnp.bfloat16, attention_backend="xla")
    text = str(jax.make_jaxpr(model.apply)(variables(model), CLIPS))
    for primitive in ("dot_general", "reduce_sum", "reduce_max", "exp", "rsqrt", "erf"):
        results = re.findall(rf":(\w+)\[[\d,]*\] = {primitive}\b", text)
        assert results, primitive
        assert set(results) == {"f32"}, primitive
    sides = re.findall(r":(\w+)\[[\d,]*\] = convert_element_type", text)
    assert "bf16" in sides


@pytest.mark.parametrize("dtype", ["float32", jnp.bfloat16])
def test_parameters_are_float32_whatever_is_computed_in(dtype):
    model = VideoClassifier(TINY, dtype=dtype)
    drawn = model.init(jax.random.key(0), CLIPS)["params"]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(drawn)} == {"float32"}
    gradient = jax.grad(lambda params: model.apply({"params": params}, CLIPS).sum())(drawn)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(gradient)} == {"float32"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "float16"}, "dtype must be one of float32, bfloat16, got 'float16'"),
        ({"dtype": "half a float"}, "got 'half a float'"),
        ({"attention_backend": "flash"}, "must be None or one of blocked, cudnn, pallas, xla"),
    ],
)
@pytest.mark.parametrize("model_class", [VideoEncoder, VideoClassifier, VideoPretrainer])
def test_what_a_model_can_not_compute_in_is_refused(model_class, options, words):
    inputs = (CLIPS, MASK) if model_class is VideoPretrainer else (CLIPS,)
    with pytest.raises(ValueError, match=re.escape(words)):
        model_class(TINY, **options).apply(variables(model_class(TINY)), *inputs)


@pytest.mark.parametrize("backend", ["blocked", "xla"])
def test_an_attention_backend_changes_no_logits(backend):
    weights = variables(VideoClassifier(TINY))
    given = VideoClassifier(TINY, attention_backend=backend).apply(weights, CLIPS)
    np.testing.assert_allclose(
        given, VideoClassifier(TINY).apply(weights, CLIPS), rtol=0, atol=2e-6
    )
