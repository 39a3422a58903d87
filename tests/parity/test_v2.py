"""VideoMAE V2 .pth files against V2's model in plain torch, and what --verify makes of mistakes."""

import dataclasses
import functools
import json
import random
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import videomae_jax as vm
from convert import job, layouts, recognize
from convert.changes import Change
from tests.folders import run
from tests.parity.original import CLAMP, Attention, Original, OriginalPretrainer
from tests.parity.reference import (
    TOLERANCE,
    assert_agree,
    random_clips,
    random_mask,
    relative_l2,
)
from tests.parity.sources import SIZES, clips_first, original_model, saved, training_file
from videomae_jax import attention, model
from videomae_jax.tokens import sinusoid_table

LABEL_MAP = Path(__file__).parents[3] / "shared" / "labels" / "label_710to400.json"
TOKENS = 60
# What the widths of the tiny models don't tell. Factors of cosine attention do.
HEADS = ("--num-heads", 6, "--decoder-num-heads", 2)

OPTIONS = {
    "cosine attention": {"cos_attn": True},
    "layer scale": {"layer_scale": True},
    "learnt positions": {"learnable_positions": TOKENS},
    "all": {"cos_attn": True, "layer_scale": True, "learnable_positions": TOKENS},
}
FIELDS = {"cos_attn": "cos_attn", "layer_scale": "layer_scale_init_value"}
FIELDS["learnable_positions"] = "use_learnable_pos_emb"
KINDS = {"fine-tuned": Original, "pre-training": OriginalPretrainer}


@functools.cache
def v2(options="all", kind="fine-tuned"):
    return original_model(KINDS[kind](**OPTIONS[options]))


def arguments(options):
    return SIZES if "cos_attn" in OPTIONS[options] else [*SIZES, *HEADS]


def outputs(module, clips, *masks):
    with torch.inference_mode():
        return module(clips_first(clips), *map(torch.from_numpy, masks)).numpy()


def converted_distance(folder, module):
    """How far the logits or predictions of a converted directory are from the torch model's."""
    loaded = vm.load(folder)
    inputs = [random_clips(loaded.config)]
    if isinstance(module, OriginalPretrainer):
        inputs.append(random_mask(loaded.config))
    given = loaded.model.apply({"params": loaded.params}, *inputs)
    return relative_l2(given, outputs(module, *inputs))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", OPTIONS)
def test_it_computes_what_v2_does(tmp_path, options, kind):
    file = saved(training_file(v2(options, kind).state_dict()), tmp_path / "model.pth")
    assert run(file, tmp_path / "out", "--verify", *arguments(options)) == 0
    assert_agree({options: converted_distance(tmp_path / "out", v2(options, kind))})
    loaded = vm.load(tmp_path / "out")
    assert loaded.conversion["verification"]["agrees"]
    assert loaded.conversion["source"]["layout"] == "original"
    assert loaded.conversion["tensors"]["ignored"] == []
    assert loaded.config.num_attention_heads == 6
    if kind == "pre-training":
        assert loaded.config.decoder_num_attention_heads == 2
    for option, field in FIELDS.items():
        assert bool(getattr(loaded.config, field)) == (option in OPTIONS[options])


def without(option):
    """The model with all options, one of which has lost what it learnt."""
    module = original_model(Original(**OPTIONS["all"]))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith(option):
                parameter.fill_(1.0)
    return module


@pytest.mark.parametrize("option", ["gamma_1", "gamma_2", "attn.scale", "pos_embed"])
def test_every_option_shows(option):
    # Otherwise their agreement above would say nothing.
    clips = random_clips(vm.VideoMAEConfig(image_size=(12, 20), patch_size=(4, 4), num_frames=8))
    assert relative_l2(outputs(without(option), clips), outputs(v2(), clips)) > 100 * TOLERANCE


def prefixed(prefix, weights):
    return {prefix + name: value for name, value in weights.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "backbone."])
def test_prefixes_are_taken_off(tmp_path, prefix, kind):
    weights = v2("all", kind).state_dict()
    wanted = job.convert(saved(weights, tmp_path / "plain.pth"), request()).params
    file = saved({"model": prefixed(prefix, weights)}, tmp_path / "model.pth")
    given = job.convert(file, request()).params
    jax.tree.map(np.testing.assert_array_equal, given, wanted)
    assert run(file, "--verify", *SIZES) == 0


def request(**fields):
    return job.Request(overrides={"image_size": (12, 20), "num_frames": 8} | fields)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(tmp_path, dtype, kind):
    module = original_model(KINDS[kind](**OPTIONS["all"]))
    half = {name: value.to(dtype) for name, value in module.state_dict().items()}
    module.load_state_dict({name: value.float() for name, value in half.items()})
    # DeepSpeed keeps the weights of a half precision run so.
    file = saved({"module": half, "dp_world_size": 64}, tmp_path / "model.pth")
    assert run(file, tmp_path / "out", "--verify", *SIZES) == 0
    assert_agree({str(dtype): converted_distance(tmp_path / "out", module)})
    assert vm.load(tmp_path / "out").params["encoder"]["pos_embed"].dtype == np.float32


def test_averaged_weights_can_be_chosen(tmp_path):
    trained, averaged = v2(), original_model(Original(**OPTIONS["all"]), seed=1)
    content = training_file(trained.state_dict()) | {"model_ema": averaged.state_dict()}
    file = saved(content, tmp_path / "model.pth")
    for choice, module in (("model", trained), ("ema", averaged)):
        out = tmp_path / choice
        assert run(file, out, "--verify", *SIZES, "--weights", choice) == 0
        assert_agree({choice: converted_distance(out, module)})


@functools.cache
def beyond_the_clamp():
    module = original_model(Original(**OPTIONS["all"]))
    with torch.no_grad():
        for block in module.blocks:
            block.attn.scale[::2] = CLAMP + 2.0
    return module


def test_factors_beyond_the_largest_are_clamped(tmp_path):
    file = saved(beyond_the_clamp().state_dict(), tmp_path / "model.pth")
    assert run(file, tmp_path / "out", "--verify", *SIZES) == 0
    # Scores of 100 have fewer digits behind the point.
    assert converted_distance(tmp_path / "out", beyond_the_clamp()) < 5 * TOLERANCE


def zero_query_attention(qkv, scale):
    """V2's attention of packed queries, keys and values in torch, without its projections."""
    heads = len(scale)
    module = Attention(qkv.shape[-1] // 3, heads, cos_attn=True)
    module.scale = torch.nn.Parameter(torch.from_numpy(scale).reshape(-1, 1, 1))
    q, k, v = qkv.view(*qkv.shape[:2], 3, heads, -1).unbind(2)
    mixed = torch.einsum("bnlm,bmnk->blnk", module.scores(q, k).softmax(-1), v)
    return mixed.flatten(2)


@pytest.mark.parametrize("part", ["query", "key"])
def test_a_zero_vector_has_torch_s_values_and_finite_gradients(part):
    generator = np.random.default_rng(0)
    qkv = generator.standard_normal((2, 5, 3 * 2 * 7), dtype=np.float32)
    start = 0 if part == "query" else 14
    qkv[0, 3, start : start + 7] = 0.0
    scale = np.array([1.5, 6.0], np.float32)
    wanted = zero_query_attention(torch.from_numpy(qkv), scale).detach().numpy()
    given = attention.attend(jnp.asarray(qkv), 2, logit_scale=jnp.asarray(scale))
    assert relative_l2(given, wanted) < TOLERANCE

    def total(qkv, scale):
        return (attention.attend(qkv, 2, logit_scale=scale) ** 2).sum()

    gradients = jax.grad(total, argnums=(0, 1))(jnp.asarray(qkv), jnp.asarray(scale))
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    # Beyond the clamp there is nothing to learn.
    assert gradients[1][0] != 0
    assert gradients[1][1] == 0


# What --verify must find. Each of these leaves a conversion that runs, and is wrong.


def without_the_clamp(monkeypatch):
    monkeypatch.setattr(attention, "LARGEST_LOGIT_SCALE", 100.0)


def with_the_rules(monkeypatch, change):
    table = dataclasses.replace(layouts.ORIGINAL, rules=tuple(map(change, layouts.ORIGINAL.rules)))
    found = tuple(table if each is layouts.ORIGINAL else each for each in layouts.LAYOUTS)
    monkeypatch.setattr(recognize, "LAYOUTS", found)


def with_gammas_swapped(monkeypatch):
    def swapped(rule):
        other = {"1": "2", "2": "1"}
        if "gamma_" not in rule.pattern:
            return rule
        return dataclasses.replace(rule, pattern=rule.pattern[:-1] + other[rule.pattern[-1]])

    with_the_rules(monkeypatch, swapped)


def with_changed(monkeypatch, ending, change):
    def changed(rule):
        new = Change(lambda array: change(rule.change(array)), rule.change.back)
        return dataclasses.replace(rule, change=new) if rule.pattern.endswith(ending) else rule

    with_the_rules(monkeypatch, changed)


def with_heads_backwards(monkeypatch):
    with_changed(monkeypatch, "attn.scale", lambda array: array[::-1])


def with_positions_backwards(monkeypatch):
    with_changed(monkeypatch, "pos_embed", lambda array: array[::-1])


def without_positions(monkeypatch):
    monkeypatch.setattr(
        model.VideoEncoder,
        "_positions",
        lambda self: jnp.asarray(sinusoid_table(self.config.num_tokens, self.config.hidden_size)),
    )


def without_unit_keys(monkeypatch):
    monkeypatch.setattr(attention, "_unit_length", lambda vectors: vectors)


MISTAKES = (
    without_the_clamp,
    with_gammas_swapped,
    with_heads_backwards,
    with_positions_backwards,
    without_positions,
    without_unit_keys,
)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_verification_finds_mistakes(tmp_path, monkeypatch, capsys, mistake):
    file = saved(beyond_the_clamp().state_dict(), tmp_path / "model.pth")
    mistake(monkeypatch)
    assert run(file, tmp_path / "out", "--verify", *SIZES) == 1
    assert "DOES NOT AGREE" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


def test_a_giant_is_recognised(tmp_path):
    giant = vm.VARIANTS["giant"]
    module = original_model(
        Original(width=1408, layers=1, heads=16, hidden=6144, tubelet=(2, 14, 14), num_classes=710)
    )
    weights = {name: value.half() for name, value in module.state_dict().items()}
    file = saved({"module": prefixed("_orig_mod.", weights)}, tmp_path / "model.pth")
    module.load_state_dict({name: value.float() for name, value in weights.items()})
    assert run(file, tmp_path / "out", "--verify", "--image-size", 28, "--num-frames", 2) == 0
    loaded = vm.load(tmp_path / "out")
    for field in ("hidden_size", "intermediate_size", "patch_size", "num_attention_heads"):
        assert getattr(loaded.config, field) == getattr(giant, field)
    assert (loaded.config.head_dim, loaded.config.num_labels) == (88, 710)
    assert loaded.conversion["network"]["overrides"] == {"image_size": [28, 28], "num_frames": 2}
    assert_agree({"logits": converted_distance(tmp_path / "out", module)})


def generated_rows(folder):
    rows = random.Random(0).sample(range(710), 400)
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder / "rows.json"


@pytest.mark.parametrize("find", [generated_rows, lambda folder: LABEL_MAP], ids=["own", "V2's"])
def test_rows_of_a_head_of_710_classes(tmp_path, find):
    path = find(tmp_path)
    rows = json.loads(path.read_text())
    module = original_model(Original(num_classes=710, cos_attn=True))
    file = saved(module.state_dict(), tmp_path / "model.pth")
    assert run(file, tmp_path / "out", "--verify", *SIZES, "--label-map", path) == 0
    loaded = vm.load(tmp_path / "out")
    assert (loaded.config.num_labels, len(loaded.labels)) == (400, 400)
    clips = random_clips(loaded.config)
    given = loaded.model.apply({"params": loaded.params}, clips)
    assert relative_l2(given, outputs(module, clips)[:, rows]) < TOLERANCE
    assert loaded.conversion["labels"]["label_map"] == path.name


def test_names_of_all_classes_follow_their_rows(tmp_path):
    module = original_model(Original(cos_attn=True))
    file = saved(module.state_dict(), tmp_path / "model.pth")
    names = [f"class {number}" for number in range(9)]
    (tmp_path / "names.txt").write_text("\n".join(names))
    (tmp_path / "rows.json").write_text("[5, 0, 7]")
    options = ["--label-map", tmp_path / "rows.json", "--labels", tmp_path / "names.txt"]
    assert run(file, tmp_path / "out", *SIZES, *options) == 0
    assert vm.load(tmp_path / "out").labels.names == ("class 5", "class 0", "class 7")
