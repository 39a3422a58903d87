import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

import videomae_jax as vm
from tests.configs import TINY, random_clips, random_params
from tests.films import write_film
from tests.test_evaluation import NAMES, write
from videomae_jax.__main__ import main
from videomae_jax.checkpoint import CheckpointError
from videomae_jax.evaluation import evaluate
from videomae_jax.labels import softmax
from videomae_jax.model import VideoClassifier, VideoEncoder, VideoPretrainer, abstract_params
from videomae_jax.training import features as features_module
from videomae_jax.training import probe as probe_module
from videomae_jax.training.examples import read_examples
from videomae_jax.training.features import features_of, pooled_model, token_model
from videomae_jax.training.probe import (
    DECAYS,
    AttentiveProbe,
    apply_attentive,
    fit_attentive,
    fit_linear,
    held_out,
    knn,
)
from videomae_jax.training.probe_run import run_probe
from videomae_jax.views import Views, read_views

SMALL = dataclasses.replace(TINY, num_hidden_layers=1, image_size=(12, 12))


SCALES, SHIFTS = np.array([1, 100, 0.01, 1, 1]), np.array([0, 3, 0, -50, 0])


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, clips):
    return model.clone(attention_backend="xla").apply({"params": params}, clips)


def clouds(count, *, seed, classes=3, width=5):
    """Points around a centre for each class; the widths of the features differ greatly."""
    centres = np.random.default_rng(7).standard_normal((classes, width))
    generator = np.random.default_rng(seed)
    labels = generator.integers(classes, size=count)
    values = centres[labels] + 0.5 * generator.standard_normal((count, width))
    return (values * SCALES + SHIFTS).astype(np.float32), labels


def test_the_linear_probe_is_where_its_loss_is_least():
    values, labels = clouds(80, seed=0)
    probe = fit_linear(values, labels, 3)
    assert set(probe.accuracies) == set(DECAYS)
    assert probe.accuracies[probe.decay] == max(probe.accuracies.values())
    # The gradient of its loss, by hand, where features are standardised.
    mean, deviation = values.mean(axis=0), values.std(axis=0)
    standard = (values - mean) / deviation
    kernel = probe.kernel * deviation[:, None]
    logits = probe(values)
    np.testing.assert_allclose(
        logits, standard @ kernel + probe.bias + mean @ probe.kernel, atol=1e-3
    )
    error = (softmax(logits.astype(np.float64)) - np.eye(3)[labels]) / len(labels)
    assert np.abs(standard.T @ error + probe.decay * kernel).max() < 1e-4
    assert np.abs(error.sum(axis=0)).max() < 1e-4
    # Nothing could do better than the centres that the points were drawn around.
    more, wanted = clouds(500, seed=1)
    centres = np.random.default_rng(7).standard_normal((3, 5))
    points = (more - SHIFTS) / SCALES
    best = (((points[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1) == wanted).mean()
    assert (probe(more).argmax(axis=1) == wanted).mean() > best - 0.05


def test_a_feature_that_never_changes_is_no_trouble():
    values, labels = clouds(80, seed=0)
    values[:, 2] = 5.0
    probe = fit_linear(values, labels, 3)
    assert np.isfinite(probe.kernel).all()
    assert np.isfinite(probe.bias).all()


def test_what_is_held_out_is_not_learnt_from():
    values, labels = clouds(80, seed=0)
    standard = ((values - values.mean(axis=0)) / values.std(axis=0)).astype(np.float32)
    used = ~held_out(labels, seed=0)
    kernel, bias = probe_module._fit(standard, labels, used, 3, 0.1)
    every = np.ones(used.sum(), bool)
    alone, other = probe_module._fit(standard[used], labels[used], every, 3, 0.1)
    np.testing.assert_allclose(kernel, alone, atol=1e-3)
    np.testing.assert_allclose(bias, other, atol=1e-3)
    whole, _ = probe_module._fit(standard, labels, np.ones(80, bool), 3, 0.1)
    assert np.abs(whole - kernel).max() > 1e-2


def test_what_is_held_out_is_a_part_of_each_class():
    labels = np.repeat([0, 1, 2], [50, 10, 1])
    out = held_out(labels, seed=0)
    assert out[:50].sum() in (10, 11)
    assert out[50:60].sum() in (2, 3)
    assert not out[60]
    assert (held_out(labels, seed=0) == out).all()
    assert (held_out(labels, seed=1) != out).any()
    assert not held_out(labels[:9], seed=0).any()


def test_neighbours_by_hand():
    generator = np.random.default_rng(0)
    known, asked = generator.standard_normal((30, 4)), generator.standard_normal((5, 4))
    labels = generator.integers(3, size=30)
    found = knn(known, labels, asked, 3, neighbours=6, temperature=0.5)
    for query, shares in zip(asked, found, strict=True):
        cosines = known @ query / np.linalg.norm(known, axis=1) / np.linalg.norm(query)
        wanted = np.zeros(3)
        for place in np.argsort(-cosines)[:6]:
            wanted[labels[place]] += np.exp(cosines[place] / 0.5)
        np.testing.assert_allclose(shares, wanted / wanted.sum(), rtol=1e-5)
    # Fewer videos than neighbours: all of them.
    assert knn(known[:3], np.array([1, 1, 1]), asked, 3).argmax(axis=1).tolist() == [1] * 5


def test_the_attentive_probe_finds_the_token_that_tells():
    def draw(count, seed):
        generator = np.random.default_rng(seed)
        tokens = (0.3 * generator.standard_normal((count, 6, 8))).astype(np.float16)
        labels = generator.integers(2, size=count)
        tokens[:, :, 0] = 0
        # One token, anywhere, says the class; the mean over tokens hardly does.
        tokens[np.arange(count), generator.integers(6, size=count), :2] = np.stack(
            [np.full(count, 8.0), 8.0 * labels - 4], axis=1
        )
        return tokens, labels

    tokens, labels = draw(256, 0)
    probe = AttentiveProbe(classes=2, heads=2)
    params = fit_attentive(tokens, labels, probe, epochs=25, batch=32, base_lr=3e-3)
    more, wanted = draw(101, 1)
    logits = apply_attentive(probe, params, more, batch=32)
    assert logits.shape == (101, 2)
    assert (logits.argmax(axis=1) == wanted).mean() > 0.9
    np.testing.assert_allclose(
        logits, apply_attentive(probe, params, more, batch=101), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("architecture", [VideoClassifier, VideoEncoder, VideoPretrainer])
@pytest.mark.parametrize("pooling", [True, False])
def test_pooled_features_are_what_a_head_sees(architecture, pooling):
    config = dataclasses.replace(SMALL, use_mean_pooling=pooling)
    model = architecture(config)
    params = random_params(abstract_params(model))
    checkpoint = dataclasses.replace(_nothing(), model=model, params=params, config=config)
    clips = random_clips(config)
    own, weights = pooled_model(checkpoint)
    found = apply(own, weights, clips)
    if architecture is VideoClassifier:
        head = params["classifier"]
        logits = apply(model, params, clips)
        np.testing.assert_allclose(found @ head["kernel"] + head["bias"], logits, atol=1e-4)
    else:
        encoder = VideoEncoder(dataclasses.replace(config, use_mean_pooling=True))
        inside = dict(params.get("encoder", params))
        inside.pop("norm", None)
        mean = np.asarray(apply(encoder, inside, clips)).mean(axis=1)
        deviation = mean.std(axis=1, keepdims=True)
        wanted = (mean - mean.mean(axis=1, keepdims=True)) / deviation
        np.testing.assert_allclose(found, wanted, atol=1e-3)
    tokens, weights = token_model(checkpoint)
    assert apply(tokens, weights, clips).shape == (2, config.num_tokens, 24)


def _nothing():
    from videomae_jax.inference import Checkpoint

    return Checkpoint(
        model=VideoEncoder(SMALL),
        params={},
        config=SMALL,
        labels=None,
        preprocess=vm.Preprocess.default(12),
        conversion={},
    )


# --- on videos ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three classes, films of a class alike; six to learn from, two to count on."""
    folder = tmp_path_factory.mktemp("data")
    for seed, name in enumerate(NAMES[:3]):
        for number in range(8):
            place = folder / ("train" if number < 6 else "val") / name
            place.mkdir(parents=True, exist_ok=True)
            write_film(place / f"{number}.mp4", seed, count=8 + number, still=True)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write(tmp_path_factory.mktemp("model") / "model", SMALL, VideoPretrainer)


def test_features_are_computed_once(data, model, tmp_path, monkeypatch):
    checkpoint = vm.load(model)
    paths = read_examples(data, split="val").paths
    paths.insert(2, str(tmp_path / "gone.mp4"))
    told = []
    options = {"kind": "pooled", "folder": tmp_path / "features", "name": "val"}
    found = features_of(checkpoint, paths, **options, on_bad=lambda path, error: told.append(path))
    assert told == [paths[2]]
    assert found.failed == 1
    assert found.numbers.tolist() == [0, 1, 3, 4, 5, 6]
    own, weights = pooled_model(checkpoint)
    for row, number in zip(found.values, found.numbers, strict=True):
        seen = read_views(paths[number], 6, preprocess=checkpoint.preprocess, views=Views())
        scale, shift = checkpoint.preprocess.normalization()
        clip = (seen.clips * scale + shift).astype(np.float32)
        wanted = apply(own, weights, clip)[0]
        np.testing.assert_allclose(row, wanted, atol=1e-4)

    computed = []

    def run_videos(model, params, preprocess, paths, **more):
        computed.append(1)
        return iter([(number, np.ones((1, 24), np.float32)) for number in range(len(paths))])

    monkeypatch.setattr(features_module, "run_videos", run_videos)
    again = features_of(checkpoint, paths, **options)
    np.testing.assert_array_equal(again.values, found.values)
    assert (again.failed, computed) == (1, [])
    # Other videos, views or another model: computed anew.
    features_of(checkpoint, paths[1:], **options)
    features_of(checkpoint, paths[1:], **options, views=Views(sampling="ssv2"))
    other = dataclasses.replace(checkpoint, params=jax.tree.map(lambda a: a + 1, checkpoint.params))
    again = features_of(dataclasses.replace(other, conversion={}), paths[1:], **options)
    assert len(computed) == 3
    assert (again.values == 1).all()
    with pytest.raises(ValueError, match="tokens are of one view, got 2x1"):
        features_of(checkpoint, paths, **options | {"kind": "tokens"}, views=Views.parse("2x1"))


def command(data, model, workdir, *options):
    words = ["probe", "--no-compile-cache", "--data", data, "--model", model, "--workdir", workdir]
    return main([str(word) for word in (*words, "--json", *options)])


def test_a_linear_probe_becomes_a_model(data, model, tmp_path, capsys):
    assert command(data, model, tmp_path / "run") == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((tmp_path / "run" / "probe.json").read_text())
    assert (found["kind"], found["count"], found["failed"]) == ("linear", 6, 0)
    assert (found["train_count"], found["train_failed"]) == (18, 0)
    assert found["top1"] == 1
    assert sorted(float(decay) for decay in found["held_out_top1"]) == list(DECAYS)
    final = tmp_path / "run" / "final"
    checkpoint = vm.load(final)
    assert checkpoint.labels.names == tuple(sorted(NAMES[:3]))
    counted = evaluate(checkpoint, read_examples(data, split="val"))
    assert (counted["top1"], counted["count"]) == (1, 6)
    assert checkpoint.conversion["trained"]["weight_decay"] == found["weight_decay"]
    clip = data / "val" / "spinning top" / "7.mp4"
    assert main(["classify", str(clip), "--model", str(final), "--json"]) == 0
    (best, *_) = json.loads(capsys.readouterr().out)["predictions"]
    assert best["label"] == "spinning top"
    # A second probe would overwrite the model.
    assert command(data, model, tmp_path / "run") == 2
    assert "final exists" in capsys.readouterr().err


def test_its_logits_are_the_probes(data, model, tmp_path):
    sets = {
        name: read_examples(data, split=split)
        for name, split in (("train", "train"), ("validation", "val"))
    }
    checkpoint = vm.load(model)
    run_probe("linear", checkpoint, **sets, workdir=tmp_path)
    features = np.load(tmp_path / "features" / "validation-pooled.npy")
    known = np.load(tmp_path / "features" / "train-pooled.npy")
    wanted = fit_linear(known, sets["train"].labels, 3)(features)
    final = vm.load(tmp_path / "final")
    scale, shift = final.preprocess.normalization()
    for path, logits in zip(sets["validation"].paths, wanted, strict=True):
        seen = read_views(path, 6, preprocess=final.preprocess, views=Views())
        clip = (seen.clips * scale + shift).astype(np.float32)
        given = apply(final.model, final.params, clip)[0]
        np.testing.assert_allclose(given, logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["knn", "attentive"])
def test_other_probes_count_and_keep_what_they_learnt(data, model, tmp_path, capsys, kind):
    manifest = tmp_path / "val.csv"
    lines = [f"{data / 'val' / name / '6.mp4'},{name}" for name in (*NAMES[:3], NAMES[0])]
    manifest.write_text("\n".join(["path,label", *lines, f"{tmp_path / 'gone.mp4'},left", ""]))
    options = ("--kind", kind, "--val-data", manifest, "--epochs", 60)
    assert command(data, model, tmp_path / "run", *options) == 0
    output = capsys.readouterr()
    found = json.loads(output.out)
    assert (found["kind"], found["count"], found["failed"]) == (kind, 4, 1)
    assert found["top1"] == 1
    assert [entry["count"] for entry in found["per_class"]] == [2, 1, 1]
    assert "gone.mp4: doesn't exist" in output.err
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["features", "probe.json", *["probe.npz"] * (kind == "attentive")]
    if kind == "attentive":
        arrays = np.load(tmp_path / "run" / "probe.npz")
        assert arrays["classifier/kernel"].shape == (24, 3)


def test_text_tells_where_the_model_is(data, model, tmp_path, capsys):
    # The words of the other commands that train mean the same.
    options = ["--recipe", "linear", "--data", data, "--init", model, "--workdir", tmp_path]
    assert main(["probe", "--no-compile-cache", *map(str, options)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "linear probe: learnt from 18 videos, counted on 6"
    assert lines[-1] == f"written to {tmp_path / 'final'}"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--data": "{data}/train"}, "no split val or test to count on"),
        ({"--val-data": "{data}/val/right"}, "has no labels"),
        ({"--model": "nowhere"}, "nowhere doesn't exist"),
        ({"--views": "3x1", "--kind": "attentive"}, "tokens are of one view"),
    ],
)
def test_a_bad_request_is_one_line_and_exit_code_2(data, model, tmp_path, change, words, capsys):
    options = {"--data": data, "--model": model, "--workdir": tmp_path} | change
    words_given = [str(each).format(data=data) for pair in options.items() for each in pair]
    assert main(["probe", "--no-compile-cache", *words_given]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert line.startswith("videomae: error: ")
    assert words in line


def test_sets_must_go_together(data, model, tmp_path):
    train, validation = (read_examples(data, split=split) for split in ("train", "val"))
    checkpoint = vm.load(model)
    with pytest.raises(ValueError, match="different names"):
        run_probe(
            "knn",
            checkpoint,
            train=train,
            validation=dataclasses.replace(validation, classes=("a", "b", "c")),
            workdir=tmp_path,
        )
    more = dataclasses.replace(validation, labels=validation.labels + 1, classes=None)
    with pytest.raises(ValueError, match="validation set has class 3, the training set has 3"):
        run_probe("knn", checkpoint, train=train, validation=more, workdir=tmp_path)
    (tmp_path / "final").mkdir()
    with pytest.raises(CheckpointError, match="final exists"):
        run_probe("linear", checkpoint, train=train, validation=validation, workdir=tmp_path)
