"""A run from videos to a model, in one process."""

import dataclasses
import json
import shlex
import shutil

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import videomae_jax as vm
from convert.__main__ import main as convert
from tests.tiny_training import COLOURS, FINETUNE, MODEL, PRETRAIN, lines, train, write_videos
from videomae_jax.__main__ import main as videomae
from videomae_jax.checkpoint import load_description
from videomae_jax.training import recipes
from videomae_jax.training import step as step_module
from videomae_jax.training.assembly import Training, class_weights
from videomae_jax.training.checkpoints import named_leaves
from videomae_jax.training.devices import Devices
from videomae_jax.training.examples import Examples
from videomae_jax.training.run import completed, plan_of, run

THREE = dataclasses.replace(MODEL, num_labels=3)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_videos(tmp_path_factory.mktemp("data") / "videos", 16)


@pytest.fixture(scope="module")
def pretrained(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "pretrained"
    assert train("pretrain", data, workdir) == 0
    return workdir


@pytest.fixture(scope="module")
def finetuned(data, pretrained, tmp_path_factory):
    """With an average of the weights that has all of them in two steps."""
    workdir = tmp_path_factory.mktemp("runs") / "finetuned"
    fields = ("--optimizer.base-lr", 0.2, "--optimizer.ema", 0.2)
    assert train("finetune", data, workdir, "--init", pretrained / "final", *fields) == 0
    return workdir


# --- the model ------------------------------------------------------------------------------------


def test_the_final_model_is_a_converted_directory(finetuned, data):
    checkpoint = vm.load(finetuned / "final")
    assert checkpoint.labels.names == ("blue", "green", "red")
    assert checkpoint.config.num_labels == 3
    assert checkpoint.preprocess.image_mean == FINETUNE.mean
    assert checkpoint.preprocess.image_std == FINETUNE.std
    assert checkpoint.preprocess.output_size == MODEL.image_size
    report = checkpoint.conversion
    assert report["format"] == "videomae_jax/training/1"
    assert (report["trained"]["recipe"], report["trained"]["steps"]) == ("test-finetune", 12)
    assert report["recipe"]["optimizer"]["base_lr"] == 0.2
    written = {entry["name"] for entry in report["written"]}
    assert {"labels.json", "processing.json"} < written
    assert any(name.startswith("params/") for name in written)


def test_it_classifies_what_it_was_trained_for(finetuned, data, capsys):
    clips = [str(data.parent / f"{number}.mp4") for number in (3, 7, 11)]
    assert videomae(["classify", *clips, "--model", str(finetuned / "final"), "--json"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = [answer["predictions"][0]["label"] for answer in answers]
    assert found == [list(COLOURS)[number % 3] for number in (3, 7, 11)]


@pytest.mark.parametrize("task", ["pretrained", "finetuned"])
def test_it_goes_on_to_transformers(task, tmp_path, request):
    final = request.getfixturevalue(task) / "final"
    assert convert([str(final), str(tmp_path / "hf"), "--to", "huggingface"]) == 0
    assert convert([str(tmp_path / "hf"), str(tmp_path / "back")]) == 0
    here, there = load_description(final), load_description(tmp_path / "back")
    assert (here.architecture, here.labels) == (there.architecture, there.labels)
    assert here.preprocess == there.preprocess
    one, other = vm.load(final).params, vm.load(tmp_path / "back").params
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_the_average_of_the_weights_is_what_is_written(finetuned):
    from orbax.checkpoint import v1 as ocp

    folder = finetuned / "checkpoints" / "12"
    stored = ocp.load_checkpointables(str(folder))["state"]
    for name, leaf in named_leaves(vm.load(finetuned / "final").params).items():
        np.testing.assert_array_equal(leaf, stored[f"ema/{name}"])
        assert (np.asarray(leaf) != stored[f"params/{name}"]).any() or not np.asarray(leaf).any()


# --- figures --------------------------------------------------------------------------------------


def test_metrics_have_a_line_a_step_and_one_a_validation(finetuned):
    found = lines(finetuned)
    steps = [line for line in found if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 13))
    assert [line["epoch"] for line in steps] == pytest.approx(np.arange(1, 13) / 3, rel=1e-6)
    names = ["step", "epoch", "lr", "loss", "grad_norm", "clips_per_s", "data_wait"]
    assert all(list(line) == names for line in steps)
    assert max(line["lr"] for line in steps) == pytest.approx(0.2 * 4 / 256)
    assert all(0 <= line["data_wait"] <= 1 and line["clips_per_s"] > 0 for line in steps)
    validations = [line for line in found if "val_loss" in line]
    assert [line["step"] for line in validations] == [3, 6, 9, 12]
    assert all(line["val_count"] == 4 for line in validations)
    assert validations[-1]["val_top1"] == 1.0
    assert validations[-1]["val_loss"] < validations[0]["val_loss"] < np.log(3) + 0.01


def test_the_loss_of_validation_is_that_of_the_written_model(finetuned, data):
    """By the classify path, whose resizing is antialiased where training's is not."""
    checkpoint = vm.load(finetuned / "final")
    losses = []
    for number in (3, 7, 11, 15):
        frames = vm.read_clip(
            data.parent / f"{number}.mp4", MODEL.num_frames, sampling="kinetics", rate=1
        )
        (answer,) = [
            entry.probability
            for entry in vm.classify(checkpoint, frames, top_k=3)
            if entry.label == list(COLOURS)[number % 3]
        ]
        losses.append(-np.log(answer))
    assert lines(finetuned)[-1]["val_loss"] == pytest.approx(np.mean(losses), rel=0.1)


# --- starting from a checkpoint -------------------------------------------------------------------


def test_what_is_taken_over_is_said(pretrained, data, tmp_path, capsys):
    options = ("--init", pretrained / "final", "--steps", 1, "--optimizer.base-lr", 1e-9)
    assert train("finetune", data, tmp_path / "run", *options) == 0
    errors = capsys.readouterr().err
    assert f"videomae: encoder taken from {pretrained / 'final'}" in errors
    assert "classifier, fc_norm new; its decoder, encoder_to_decoder, mask_token left out" in errors
    given = vm.load(pretrained / "final").params["encoder"]
    taken = vm.load(tmp_path / "run" / "final").params["encoder"]
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-6), given, taken)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--model.num-attention-heads", 4, "num_attention_heads 2 where the recipe has 4"),
        ("--model.patch-size", "4 4", "patch_size (8, 8) where the recipe has (4, 4)"),
        ("--model.hidden-size", 24, "no start for the recipe's model: encoder/layers/attention/"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(
    pretrained, data, tmp_path, capsys, option, value, words
):
    options = ("--init", pretrained / "final", option, *str(value).split())
    assert train("finetune", data, tmp_path / "run", *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert not (tmp_path / "run" / "final").exists()


# --- what goes wrong ------------------------------------------------------------------------------


def test_another_recipe_on_the_same_folder_is_refused(pretrained, data, capsys):
    before = (pretrained / "run.json").read_bytes()
    assert train("pretrain", data, pretrained, "--optimizer.base-lr", 0.1, "--seed", 3) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        "holds another run (recipe.optimizer.base_lr: 0.02 there, 0.1 now; recipe.seed: 0" in line
    )
    assert (pretrained / "run.json").read_bytes() == before


def test_a_start_that_failed_keeps_no_one_out(data, tmp_path, capsys):
    workdir = tmp_path / "run"
    assert train("finetune", data, workdir, "--init", tmp_path / "nowhere", "--steps", 1) == 2
    assert "nowhere" in capsys.readouterr().err
    assert train("finetune", data, workdir, "--steps", 1) == 0
    assert (workdir / "final").is_dir()


def test_a_folder_that_is_a_file_is_one_line(data, tmp_path, capsys):
    (tmp_path / "run").write_text("mine")
    assert train("finetune", data, tmp_path / "run", "--steps", 1) == 2
    assert capsys.readouterr().err == (
        f"videomae: error: {tmp_path / 'run'} can't be a folder (File exists)\n"
    )
    assert (tmp_path / "run").read_text() == "mine"


def test_what_changes_no_number_may_change(pretrained, data, capsys):
    assert train("pretrain", data, pretrained, "--keep", 3, "--input.workers", 1) == 0
    assert capsys.readouterr().out == f"written to {pretrained / 'final'}\n"


def test_a_bad_video_is_reported_once_and_the_run_goes_on(data, tmp_path, capsys):
    folder = shutil.copytree(data.parent, tmp_path / "videos")
    (folder / "4.mp4").write_text("not a video")
    assert train("pretrain", folder / "list.csv", tmp_path / "run", "--steps", 4) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "4.mp4" in line]
    assert len(warnings) == 1
    assert warnings[0].startswith("videomae: warning: ")
    stop = ("--steps", 4, "--on-bad-video", "stop")
    assert train("pretrain", folder / "list.csv", tmp_path / "other", *stop) == 2
    assert "4.mp4" in capsys.readouterr().err.splitlines()[-1]


def test_a_loss_that_is_no_number_stops_the_run(data, tmp_path, capsys, monkeypatch):
    """From step 3 on; the checkpoint of step 2 stays, and names of the batch are said."""

    def make_step(recipe, optimizer, **options):
        step = make(recipe, optimizer, **options)

        def broken(state, batch, key):
            done, metrics = step(state, batch, key)
            loss = jax.numpy.where(state.step == 2, jax.numpy.nan, metrics["loss"])
            return done, {**metrics, "loss": loss}

        return broken

    make = step_module.make_step
    monkeypatch.setattr("videomae_jax.training.assembly.make_step", make_step)
    assert train("pretrain", data, tmp_path / "run", "--checkpoint-every", 2) == 3
    line = capsys.readouterr().err.splitlines()[-1]
    assert "step 3 has a loss of nan" in line
    named = set(line.partition("were: ")[2].split(", "))
    assert len(named) == 4
    assert named < {str(data.parent / f"{number}.mp4") for number in range(16)}
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["2"]
    assert not (tmp_path / "run" / "final").exists()
    monkeypatch.undo()
    assert train("pretrain", data, tmp_path / "run", "--checkpoint-every", 2) == 0
    assert [line["step"] for line in lines(tmp_path / "run")] == list(range(1, 13))


# --- recipes --------------------------------------------------------------------------------------


def test_recipes_are_listed(capsys):
    assert videomae(["recipes"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["recipe", "task", "width"]
    assert [row.split()[0] for row in rows] == list(recipes.RECIPES)
    assert "pretrain" in rows[0].split()


def test_a_recipe_is_shown_as_the_options_that_make_it(capsys):
    """From another one, all of them said."""
    assert videomae(["recipes", "base-ssv2-finetune"]) == 0
    said = [word for line in capsys.readouterr().out.splitlines() for word in shlex.split(line)]
    made = recipes.override(recipes.RECIPES["tiny-pretrain"], said)
    assert made == recipes.RECIPES["base-ssv2-finetune"]


def test_an_unknown_recipe_or_field_is_one_line(data, tmp_path, capsys):
    assert videomae(["recipes", "tiny"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("videomae: error: unknown recipe 'tiny'; one of: tiny-pretrain")
    assert train("pretrain", data, tmp_path / "run", "--recipe", "base-k400-finetune") == 2
    assert "is for `videomae finetune`" in capsys.readouterr().err
    assert train("pretrain", data, tmp_path / "run", "--optimizer.base-rate", 3) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "base-rate" in line
    assert not (tmp_path / "run").exists()


# --- many devices ---------------------------------------------------------------------------------


def test_moments_and_averages_are_cut_as_their_parameters_are():
    """On one device, whose mesh has the axes all the same."""
    examples = Examples([f"{number}.mp4" for number in range(8)], np.arange(8) % 3, None, 3)
    recipe = completed(FINETUNE, examples)
    training = Training(recipe, examples, Devices(sharding="fsdp"), steps_per_epoch=2)
    specs = {name: leaf.sharding.spec for name, leaf in named_leaves(training.like).items()}
    ends = [name.removeprefix("params/") for name in specs if name.startswith("params/")]
    cut = [end for end in ends if "model" in specs[f"params/{end}"]]
    assert {end.split("/")[-1] for end in cut} == {"kernel"}
    assert len(cut) > 4
    for end in ends:
        same = [name for name in specs if name.endswith(f"/{end}")]
        assert len(same) == 4, "the parameter, two moments, the average"
        assert {specs[name] for name in same} == {specs[f"params/{end}"]}
    assert specs["step"] == PartitionSpec()


@pytest.mark.parametrize(("size", "parts"), [(3, 2), (4, 3)])
def test_a_batch_that_can_not_be_divided_is_refused(size, parts):
    with pytest.raises(ValueError, match=f"{size} can't be divided among 1 devices and {parts}"):
        Devices().check_batch(size, parts=parts)


# --- what the data says ---------------------------------------------------------------------------


def test_steps_take_the_place_of_epochs():
    """For every number of them, whatever rounding does."""
    examples = Examples(["a.mp4"] * 28, np.arange(28) % 3, None, 3)
    for steps in range(1, 60):
        recipe = completed(FINETUNE, examples, steps=steps)
        plan = plan_of(recipe, examples, validate=True, log_every=5)
        assert (plan.total, plan.steps_per_epoch, plan.checkpoint) == (steps, 7, 7)
        share = recipe.optimizer.warmup_epochs / recipe.optimizer.epochs
        assert share == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("labels", "num_labels", "recipe", "words"),
    [
        (None, 0, FINETUNE, "needs labels"),
        (np.arange(4), 4, dataclasses.replace(FINETUNE, model=THREE), "4 classes"),
    ],
)
def test_data_that_does_not_fit_is_refused(labels, num_labels, recipe, words):
    examples = Examples(["a.mp4"] * 4, labels, None, num_labels)
    with pytest.raises(ValueError, match=words):
        completed(recipe, examples)


def test_no_data_is_refused():
    with pytest.raises(ValueError, match="no videos"):
        completed(PRETRAIN, Examples([], None, None, 0))


def test_what_can_not_be_validated_on_is_refused_at_once(tmp_path):
    examples = Examples(["a.mp4"] * 8, np.arange(8) % 3, None, 3)
    more = Examples(["b.mp4"] * 4, np.arange(4), None, 4)
    with pytest.raises(ValueError, match="has class 3, the training set has 3"):
        run(FINETUNE, train=examples, validation=more, workdir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_class_weights_are_of_the_examples():
    examples = Examples(["a.mp4"] * 6, np.array([0, 0, 0, 0, 2, 2]), None, 3)
    recipe = dataclasses.replace(completed(FINETUNE, examples), class_weights="balanced")
    np.testing.assert_allclose(class_weights(recipe, examples)["class_weights"], [0.5, 0, 1])
    with pytest.raises(ValueError, match="one class for each video"):
        class_weights(dataclasses.replace(PRETRAIN, class_weights="balanced"), examples)
