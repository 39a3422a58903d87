"""Hugging Face folders as PyTorch writes them: all convert, prove it, and give the same."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import torch

import videomae_jax as vm
from convert import changes, job, layouts, verify
from tests.folders import assert_memory_within_bound, listing, run
from tests.parity.reference import TINY, random_clips, random_mask, relative_l2, to_torch
from tests.parity.sources import (
    FOLDERS,
    HEADS,
    SIZES,
    Original,
    OriginalPretrainer,
    hugging_face_model,
    original_model,
    published_names,
    save_folder,
    saved,
)
from tests.reports import problems
from videomae_jax import layers
from videomae_jax.config import VideoMAEConfig
from videomae_jax.model import VideoClassifier, VideoEncoder, VideoPretrainer

CLASSES = (VideoClassifier, VideoPretrainer, VideoEncoder)


@functools.cache
def reference(model_class, **fields):
    return hugging_face_model(model_class, **fields)


def converted(source, out, *options):
    assert run(source, out, "--verify", *options) == 0
    return vm.load(out)


def assert_same(given, wanted):
    assert jax.tree.structure(given) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, given, wanted)


@pytest.mark.parametrize("model_class", CLASSES)
def test_every_kind_of_folder_gives_the_same_proven_tree(tmp_path, model_class, capsys):
    source = reference(model_class)
    trees = {}
    for kind in FOLDERS:
        for new_biases in (False, True):
            if kind == "sharded safetensors" and new_biases:
                continue
            name = f"{kind}, {new_biases}"
            folder = save_folder(source, tmp_path / "in" / name, kind, new_biases=new_biases)
            loaded = converted(folder, tmp_path / "out" / name)
            assert type(loaded.model) is model_class
            assert f"agrees with transformers {verify.import_reference()[1].__version__}" in (
                capsys.readouterr().out
            )
            trees[name] = loaded.params
    first = next(iter(trees.values()))
    for tree in trees.values():
        assert_same(tree, first)


@pytest.mark.parametrize("model_class", CLASSES)
def test_what_is_loaded_computes_what_transformers_does(tmp_path, model_class):
    source = reference(model_class)
    loaded = converted(save_folder(source, tmp_path / "in"), tmp_path / "out")
    clips = random_clips(loaded.config)
    inputs, names = [clips], []
    if model_class is VideoPretrainer:
        inputs.append(random_mask(loaded.config))
        names.append(torch.from_numpy(inputs[1]))
    with torch.inference_mode():
        output = source(to_torch(clips), *names)
    wanted = output.last_hidden_state if model_class is VideoEncoder else output.logits
    given = loaded.model.apply({"params": loaded.params}, *inputs)
    assert relative_l2(given, wanted.numpy()) < 2e-6


@pytest.mark.parametrize(
    "fields",
    [
        {"use_mean_pooling": False},
        {"qv_bias": False},
        {"layer_norm_eps": 1e-3},
        {"hidden_act": "relu"},
        {"num_labels": 1},
        {"patch_size": [4, 5], "image_size": [12, 25]},
        {"num_channels": 4},
        {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.2},
    ],
    ids=" ".join,
)
def test_other_configs_prove_themselves(tmp_path, fields):
    source = hugging_face_model(VideoClassifier, **fields)
    converted(save_folder(source, tmp_path / "in"), tmp_path / "out")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_other_precisions_are_widened(tmp_path, dtype, kind):
    source = hugging_face_model(VideoClassifier).to(dtype)
    loaded = converted(save_folder(source, tmp_path / "in", kind), tmp_path / "out")
    (stored,) = loaded.conversion["tensors"]["dtypes"]
    assert stored in {"F16", "BF16", "F64", "float16", "bfloat16", "float64"}
    wide = save_folder(source.to(torch.float32), tmp_path / "wide")
    assert_same(loaded.params, job.convert(wide).params)


def test_a_single_file_is_its_own_reference(tmp_path):
    folder = save_folder(reference(VideoClassifier), tmp_path / "in")
    other = hugging_face_model(VideoClassifier, seed=1)
    files = [
        saved(published_names(other), folder / "epoch_3.pth"),
        saved({"model": published_names(other, new_biases=True)}, folder / "epoch_4.pth"),
    ]
    wanted = job.convert(save_folder(other, tmp_path / "other")).params
    for file in files:
        assert_same(converted(file, tmp_path / "out" / file.stem).params, wanted)


def test_files_that_wrappers_of_a_model_have_saved(tmp_path):
    folder = save_folder(reference(VideoClassifier), tmp_path / "in")
    wanted = job.convert(folder).params
    names = published_names(reference(VideoClassifier))
    averaged = torch.optim.swa_utils.AveragedModel(reference(VideoClassifier)).state_dict()
    assert "n_averaged" in averaged
    wrapped = {
        "averaged": averaged,
        "compiled": {f"_orig_mod.{name}": value for name, value in names.items()},
        "parallel": {f"module.{name}": value for name, value in names.items()},
        "lightning": {"state_dict": {f"model.{name}": value for name, value in names.items()}},
    }
    for name, content in wrapped.items():
        file = saved(content, folder / f"{name}.pth")
        loaded = converted(file, tmp_path / "out" / name)
        assert_same(loaded.params, wanted)
        ignored = [entry["name"] for entry in loaded.conversion["tensors"]["ignored"]]
        assert ignored == (["n_averaged"] if name == "averaged" else [])


def test_heads_that_the_user_gives_are_verified_too(tmp_path):
    folder = save_folder(reference(VideoClassifier), tmp_path / "in")
    assert converted(folder, tmp_path / "out", "--num-heads", 3).config.num_attention_heads == 3
    folder = save_folder(reference(VideoPretrainer), tmp_path / "in too")
    converted(folder, tmp_path / "out too", "--decoder-num-heads", 11, "--image-size", "16x20")


def test_the_figures_of_the_proof_are_kept(tmp_path):
    folder = save_folder(reference(VideoPretrainer), tmp_path / "in")
    report = converted(folder, tmp_path / "out").conversion
    assert problems(report) == []
    figures = report["verification"]
    assert figures["agrees"] is True
    assert figures["tolerance"] == verify.TOLERANCE == 1e-5
    assert f"torch {torch.__version__}" in figures["reference"]
    names = [stage["name"] for stage in figures["stages"]]
    assert names == ["embedding", "first block", "encoder", "predictions", "loss"]
    assert all(0 <= stage["relative_l2"] < 2e-6 for stage in figures["stages"])


def test_proof_without_out_writes_nothing(tmp_path, capsys):
    folder = save_folder(reference(VideoEncoder), tmp_path / "in")
    before = listing(tmp_path)
    assert run(folder, "--verify") == 0
    assert "\ntokens " in capsys.readouterr().out
    assert listing(tmp_path) == before


def test_what_transformers_can_not_load_is_no_reference(tmp_path, capsys, monkeypatch):
    folder = save_folder(reference(VideoEncoder), tmp_path / "in")
    import transformers

    def fail(*args, **options):
        raise RuntimeError("sizes differ\nand more")

    monkeypatch.setattr(transformers.VideoMAEModel, "from_pretrained", fail)
    assert run(folder, tmp_path / "out", "--verify") == 2
    error = capsys.readouterr().err
    assert error == (
        f"convert: error: {folder}: transformers can't load it, so there is no reference "
        f"(sizes differ)\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", ["bin", "pth"])
def test_memory_stays_within_its_bound(tmp_path, format):
    assert_memory_within_bound(tmp_path, format)


# Mistakes that a converter or a model may have; the proof must find each in either layout.


def edit_rules(monkeypatch, edit):
    """Change the rules of both layouts one by one."""
    edited = tuple(
        dataclasses.replace(layout, rules=tuple(map(edit, layout.rules)))
        for layout in layouts.LAYOUTS
    )
    assert all(new != old for new, old in zip(edited, layouts.LAYOUTS, strict=True))
    monkeypatch.setattr("convert.recognize.LAYOUTS", edited)


def edit_change(monkeypatch, suffixes, change):
    """Give the rules for names that end so another change of the array."""
    edit_rules(
        monkeypatch,
        lambda rule: (
            dataclasses.replace(rule, change=change) if rule.pattern.endswith(suffixes) else rule
        ),
    )


def swap_query_and_key(monkeypatch):
    def edit(rule):
        if rule.pattern.endswith("attn.qkv.weight"):
            return dataclasses.replace(rule, change=key_first)
        return dataclasses.replace(
            rule, part={"query": "key", "key": "query"}.get(rule.part, rule.part)
        )

    def key_first(array):
        query, key, value = np.split(array.T, 3, axis=1)
        return np.concatenate([key, query, value], axis=1)

    edit_rules(monkeypatch, edit)


def swap_the_biases(monkeypatch):
    def edit(rule):
        names = {"query_bias": "value_bias", "value_bias": "query_bias"}
        stem, _, last = rule.target.rpartition("/")
        return dataclasses.replace(rule, target=f"{stem}/{names.get(last, last)}".lstrip("/"))

    edit_rules(monkeypatch, edit)


def drop_a_bias(monkeypatch):
    suffixes = ("attention.q_bias", "attention.query.bias", "attn.q_bias")
    edit_change(monkeypatch, suffixes, np.zeros_like)


def leave_a_square_kernel_as_it_is(monkeypatch):
    suffixes = ("attention.output.dense.weight", "attn.proj.weight")
    edit_change(monkeypatch, suffixes, changes.SAME)


def swap_the_norms(monkeypatch):
    def edit(rule):
        swapped = rule.target.replace("norm_1", "norm_?").replace("norm_2", "norm_1")
        return dataclasses.replace(rule, target=swapped.replace("norm_?", "norm_2"))

    edit_rules(monkeypatch, edit)


def flatten_tubelets_in_another_order(monkeypatch):
    def width_before_height(array):
        return array.transpose(2, 4, 3, 1, 0).reshape(-1, array.shape[0])

    suffixes = ("projection.weight", "patch_embed.proj.weight")
    edit_change(monkeypatch, suffixes, width_before_height)


def turn_the_layers_round(monkeypatch):
    def match(rule, name, right=layouts.Rule.match):
        layer = right(rule, name)
        return (
            TINY["num_hidden_layers"] - 1 - layer if layer is not None and rule.stacked else layer
        )

    monkeypatch.setattr(layouts.Rule, "match", match)


def compute_the_tanh_gelu(monkeypatch):
    monkeypatch.setitem(layers.ACTIVATIONS, "gelu", layers.ACTIVATIONS["gelu_new"])


def attend_with_other_heads(monkeypatch):
    right = layers.attend
    monkeypatch.setattr(
        layers, "attend", lambda qkv, heads, **options: right(qkv, heads // 2, **options)
    )


def norm_with_another_eps(monkeypatch):
    """Of the blocks alone; the converter's idea of it, which the reference must not share."""
    build = VideoMAEConfig.__post_init__

    def other_eps(config):
        object.__setattr__(config, "layer_norm_eps", 1e-5)
        build(config)

    monkeypatch.setattr(VideoMAEConfig, "__post_init__", other_eps)


def norm_the_head_with_another_eps(monkeypatch):
    build = VideoMAEConfig.__post_init__

    def other_eps(config):
        object.__setattr__(config, "fc_norm_eps", 1e-12)
        object.__setattr__(config, "decoder_norm_eps", 1e-12)
        build(config)

    monkeypatch.setattr(VideoMAEConfig, "__post_init__", other_eps)


MISTAKES = (
    swap_query_and_key,
    swap_the_biases,
    drop_a_bias,
    leave_a_square_kernel_as_it_is,
    swap_the_norms,
    flatten_tubelets_in_another_order,
    turn_the_layers_round,
    compute_the_tanh_gelu,
    attend_with_other_heads,
    norm_with_another_eps,
    norm_the_head_with_another_eps,
)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A source of each layout, for classification and for pre-training, with its options."""
    folder = tmp_path_factory.mktemp("sources")
    return {
        ("huggingface", "VideoClassifier"): [save_folder(reference(VideoClassifier), folder / "a")],
        ("huggingface", "VideoPretrainer"): [save_folder(reference(VideoPretrainer), folder / "b")],
        ("original", "VideoClassifier"): [
            saved(original_model(Original()).state_dict(), folder / "a.pth"),
            *SIZES,
            *HEADS,
        ],
        ("original", "VideoPretrainer"): [
            saved(original_model(OriginalPretrainer()).state_dict(), folder / "b.pth"),
            *SIZES,
            *HEADS,
        ],
    }


@pytest.mark.parametrize("layout", ["huggingface", "original"])
@pytest.mark.parametrize(
    ("mistake", "architecture"),
    [(mistake, "VideoClassifier") for mistake in MISTAKES]
    + [
        (mistake, "VideoPretrainer") for mistake in (swap_the_norms, norm_the_head_with_another_eps)
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_the_proof_finds_a_mistake(
    sources, tmp_path, capsys, monkeypatch, mistake, layout, architecture
):
    source = sources[layout, architecture]
    with monkeypatch.context() as patch:
        mistake(patch)
        assert run(source[0], tmp_path / "out", "--verify", *source[1:]) == 1
    printed = capsys.readouterr()
    assert "DOES NOT AGREE" in printed.out or " eps " in printed.out
    assert printed.err == "convert: error: the converted model is not the reference\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("layout", ["huggingface", "original"])
@pytest.mark.parametrize("architecture", ["VideoClassifier", "VideoPretrainer"])
def test_the_proof_passes_what_is_right(sources, tmp_path, layout, architecture):
    source = sources[layout, architecture]
    assert run(source[0], tmp_path / "out", "--verify", *source[1:]) == 0
