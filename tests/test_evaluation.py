import dataclasses
import functools
import json
from typing import NamedTuple

import jax
import numpy as np
import pytest

import videomae_jax as vm
from tests.configs import TINY, random_params
from tests.films import write_film
from videomae_jax import boxed, evaluation
from videomae_jax.__main__ import main
from videomae_jax.checkpoint import Description, save
from videomae_jax.evaluation import evaluate, match_labels
from videomae_jax.labels import Labels, softmax
from videomae_jax.model import VideoClassifier, VideoEncoder, abstract_params
from videomae_jax.processing import Preprocess
from videomae_jax.views import Views, read_views

NAMES = ("left", "right", "spinning top", "up", "down", "in", "out")
CONFIG = dataclasses.replace(TINY, image_size=(12, 12))
COUNT = 9


class Videos(NamedTuple):
    paths: list[str]
    labels: np.ndarray | None
    classes: tuple[str, ...] | None = None


def write(folder, config=CONFIG, model=VideoClassifier, *, conversion=None):
    description = Description(
        architecture=model.__name__,
        config=config,
        preprocess=Preprocess.default(config.image_size),
        labels=Labels(NAMES[: config.num_labels]) if model is VideoClassifier else None,
        conversion=conversion or {},
    )
    params = jax.tree.map(lambda leaf: 3 * leaf, random_params(abstract_params(model(config))))
    save(folder, params, description)
    return folder


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    return [str(write_film(folder / f"{seed}.mp4", seed, count=20)) for seed in range(COUNT)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def checkpoint(model):
    return vm.load(model)


def logits_of(checkpoint, path, views):
    """[V, K], a view at a time, on frames normalised on the host."""
    frames = read_views(path, CONFIG.num_frames, preprocess=checkpoint.preprocess, views=views)
    scale, shift = checkpoint.preprocess.normalization()
    clips = [(clip * scale + shift)[None].astype(np.float32) for clip in frames.clips]
    model = checkpoint.model.clone(attention_backend="blocked")
    return np.concatenate([apply(model, checkpoint.params, clip) for clip in clips])


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, clip):
    return model.apply({"params": params}, clip)


@pytest.mark.parametrize("text", ["1x1", "3x2"])
def test_figures_are_those_counted_by_hand(checkpoint, films, text):
    views = Views.parse(text)
    logits = np.stack([logits_of(checkpoint, path, views) for path in films])
    order = np.argsort(-softmax(logits.astype(np.float64)).mean(axis=1), axis=1)
    # A third is right, a third is second, a third is last.
    targets = np.array([order[number, (0, 1, 6)[number % 3]] for number in range(COUNT)])
    found = evaluate(checkpoint, Videos(films, targets), views=views, batch=4)
    assert len({tuple(row) for row in order}) > 1
    assert found["top1"] == pytest.approx(3 / COUNT)
    assert found["top5"] == pytest.approx(6 / COUNT)
    assert (found["count"], found["failed"], found["published"]) == (COUNT, 0, None)
    confusion = np.zeros((7, 7), int)
    for target, said in zip(targets, order[:, 0], strict=True):
        confusion[target, said] += 1
    assert found["confusion"] == confusion.tolist()
    for number, entry in enumerate(found["per_class"]):
        assert (entry["index"], entry["label"]) == (number, NAMES[number])
        assert entry["count"] == (targets == number).sum()
        assert entry["right"] == (targets[targets == order[:, 0]] == number).sum()
    low, high = found["interval"]["top1"]
    assert low < 3 / COUNT < high


def test_the_size_of_batches_and_the_workers_change_nothing(checkpoint, films):
    targets = np.arange(COUNT) % 7
    wanted = evaluate(checkpoint, Videos(films, targets), batch=1, workers=1)
    for batch, workers in ((4, 3), (64, 20)):
        found = evaluate(checkpoint, Videos(films, targets), batch=batch, workers=workers)
        assert found == wanted


def test_frames_in_disorder_are_the_same_frames(checkpoint, films, monkeypatch):
    seen = {}

    def run_videos(*arguments, change, **options):
        clips = np.arange(2 * 6)[:, None, None, None].repeat(3, axis=3).reshape(2, 6, 1, 1, 3)
        for number in range(3):
            seen.setdefault(number, []).append(change(number, clips)[..., 0, 0, 0])
        yield 0, np.ones((1, 7), np.float32)

    monkeypatch.setattr(evaluation, "run_videos", run_videos)
    for seed in (3, 3, 4):
        evaluate(checkpoint, Videos(films[:1], np.array([0])), shuffle_frames=seed)
    orders = []
    for number in range(3):
        once, again, other = seen[number]
        np.testing.assert_array_equal(once, again)
        assert (once != other).any()
        for each in (once, other):
            np.testing.assert_array_equal(np.sort(each[0]), np.arange(6))
            np.testing.assert_array_equal(np.sort(each[1]), np.arange(6, 12))
            orders += [tuple(each[0]), tuple(each[1] - 6)]
    assert len(set(orders)) == len(orders)


def test_disorder_changes_what_the_model_says(checkpoint, films, monkeypatch):
    said = []

    def keep(probabilities, targets):
        said.append(probabilities)
        return {}

    monkeypatch.setitem(evaluation._FIGURES, "single", keep)
    for seed in (None, 0, 0):
        evaluate(checkpoint, Videos(films[:4], np.zeros(4, int)), shuffle_frames=seed)
    np.testing.assert_array_equal(said[1], said[2])
    assert (np.abs(said[0] - said[1]).max(axis=1) > 1e-3).all()


def test_a_bad_video_is_counted_apart(checkpoint, films, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"\0" * 100)
    targets = np.arange(4)
    told = []
    found = evaluate(
        checkpoint,
        Videos([*films[:2], str(bad), films[2]], targets),
        on_bad=lambda path, error: told.append((path, str(error))),
    )
    assert (found["count"], found["failed"]) == (3, 1)
    assert told[0][0] == str(bad)
    assert str(bad) in told[0][1]
    assert [entry["count"] for entry in found["per_class"]][:5] == [1, 1, 0, 1, 0]
    with pytest.raises(ValueError, match="none of the 2 videos can be read"):
        evaluate(checkpoint, Videos([str(bad)] * 2, targets[:2]))


def test_classes_without_names_are_numbered(checkpoint, films):
    nameless = dataclasses.replace(checkpoint, labels=None)
    found = evaluate(nameless, Videos(films[:2], np.array([1, 4])))
    assert [entry["label"] for entry in found["per_class"]] == [f"LABEL_{n}" for n in range(7)]


def test_several_labels_and_numbers(films, tmp_path):
    multi = dataclasses.replace(CONFIG, problem_type="multi_label_classification")
    checkpoint = vm.load(write(tmp_path / "multi", multi))
    logits = np.concatenate([logits_of(checkpoint, path, Views()) for path in films[:4]])
    # One class each: the first by that class's logit, so that average precision is 1; or the last.
    targets = np.zeros((4, 7))
    targets[logits[:, 0].argmax(), 0] = targets[logits[:, 1].argmin(), 1] = 1
    found = evaluate(checkpoint, Videos(films[:4], targets))
    assert found["map"] == pytest.approx((1 + 1 / 4) / 2)
    assert found["per_class"][1]["label"] == "right"
    numbers = dataclasses.replace(CONFIG, problem_type="regression", num_labels=2)
    checkpoint = vm.load(write(tmp_path / "regression", numbers))
    views = Views.parse("2x1")
    outputs = np.stack([logits_of(checkpoint, path, views).mean(axis=0) for path in films[:4]])
    found = evaluate(checkpoint, Videos(films[:4], outputs + np.array([1.0, -3.0])), views=views)
    assert found["mse"] == pytest.approx((1 + 9) / 2, rel=1e-4)
    assert found["mae"] == pytest.approx(2, rel=1e-4)
    with pytest.raises(ValueError, match="gives 2 numbers, the labels have 3"):
        evaluate(checkpoint, Videos(films[:4], np.zeros((4, 3))))


def test_labels_are_matched_by_name_or_number():
    labels = Labels(NAMES)
    videos = Videos(["a"] * 3, np.array([0, 2, 1]), ("out", "Spinning_Top", "up"))
    assert match_labels(videos, CONFIG, labels).tolist() == [6, 3, 2]
    assert match_labels(Videos(["a"], np.array([6])), CONFIG, labels).tolist() == [6]
    # A name that no video of this part has is no matter.
    videos = Videos(["a"], np.array([1]), ("unheard of", "down"))
    assert match_labels(videos, CONFIG, labels).tolist() == [4]
    videos = Videos(["a"], np.array([[1.0, 0.0, 1.0]]), ("out", "left", "2"))
    assert match_labels(videos, CONFIG, labels).tolist() == [[0, 0, 1, 0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("videos", "words"),
    [
        (Videos(["a"], None), "no labels"),
        (Videos(["a", "b"], np.array([0, 7])), "classes 0 to 6, the labels have 7 too"),
        (Videos(["a", "b"], np.array([0, -1])), "labels have -1 too"),
        (
            Videos(["a", "b"], np.array([0, 1]), ("left", "rigth")),
            "1 of the 2 labels are no class of the model: 'rigth'; is 'rigth' 'right'",
        ),
        (Videos(["a"], np.array([0]), ("7",)), "no class of the model: '7'"),
    ],
)
def test_unknown_labels_are_refused_before_anything_is_read(checkpoint, videos, words):
    with pytest.raises(ValueError, match=words):
        evaluate(checkpoint, videos)


def test_a_model_without_classes_says_what_to_do(tmp_path, films):
    checkpoint = vm.load(write(tmp_path / "encoder", model=VideoEncoder))
    with pytest.raises(ValueError, match=r"VideoEncoder without classes .* `videomae probe`"):
        evaluate(checkpoint, Videos(films, np.zeros(COUNT, int)))


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def manifest(films, tmp_path):
    path = tmp_path / "manifest.csv"
    lines = [f"{film},{NAMES[number % 3]}" for number, film in enumerate(films)]
    path.write_text("\n".join(["path,label", *lines, f"{tmp_path / 'gone.mp4'},left", ""]))
    return path


def command(*arguments):
    return main(["evaluate", "--no-compile-cache", *map(str, arguments)])


def test_json_is_one_object(checkpoint, model, films, manifest, capsys):
    assert command("--data", manifest, "--model", model, "--views", "2x1", "--json") == 0
    output = capsys.readouterr()
    found = json.loads(output.out)
    wanted = evaluate(checkpoint, Videos(films, np.arange(COUNT) % 3), views=Views.parse("2x1"))
    assert found["failed"] == 1
    assert found["views"] == "2x1"
    assert found["sampling"] == "kinetics"
    for name in ("top1", "top5", "count", "per_class", "confusion", "published"):
        assert found[name] == wanted[name]
    assert found["interval"]["top1"] == list(wanted["interval"]["top1"])
    (line,) = output.err.splitlines()
    assert line.startswith("videomae: error: ")
    assert "gone.mp4: doesn't exist" in line


def test_text_is_tables(model, manifest, capsys):
    assert command("--data", manifest, "--model", model) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{COUNT} videos, 1 could not be read"
    assert any(line.startswith("top-1 ") for line in lines)
    assert sum(line.split()[:3] == ["spinning", "top", "3"] for line in lines) == 1
    start = lines.index(next(line for line in lines if line.startswith("true \\ said")))
    rows = lines[start + 1 :]
    assert [row.split()[1] for row in rows] == [name.split()[0] for name in NAMES]
    counts = [row.split()[-7:] for row in rows]
    assert sum(int(each) for row in counts for each in row if each != ".") == COUNT
    assert any(" as " in line and " of 3" in line for line in lines)


def test_a_known_checkpoint_has_its_published_figures_beside(tmp_path, films, capsys):
    config = dataclasses.replace(CONFIG, num_labels=174)
    source = {"hub": {"id": "MCG-NJU/videomae-small-finetuned-ssv2", "revision": "0"}}
    description = Description(
        architecture="VideoClassifier",
        config=config,
        preprocess=Preprocess.default(config.image_size),
        labels=Labels.numbered(174),
        conversion={"source": source},
    )
    params = random_params(abstract_params(VideoClassifier(config)))
    save(tmp_path / "model", params, description)
    data = tmp_path / "list.txt"
    data.write_text("".join(f"{film} {number}\n" for number, film in enumerate(films)))
    assert command("--data", data, "--model", tmp_path / "model", "--json") == 0
    found = json.loads(capsys.readouterr().out)["published"]
    assert (found["top1"], found["top5"], found["views"]) == (0.668, 0.903, "2x3")
    assert command("--data", data, "--model", tmp_path / "model") == 0
    text = capsys.readouterr().out
    assert "66.8 %" in text
    assert "it was trained with 6 heads, this is with 2: try --num-heads 6" in text
    assert "true \\ said" not in text


def test_splits_and_folders_of_classes(model, films, tmp_path, capsys):
    for number, film in enumerate(films[:4]):
        place = tmp_path / "data" / ("train", "val")[number % 2] / NAMES[number // 2]
        place.mkdir(parents=True)
        (place / "clip.mp4").symlink_to(film)
    counts = {}
    for options in ((), ("--split", "train")):
        data = ("--data", tmp_path / "data", "--model", model, "--json")
        assert command(*data, *options) == 0
        counts[options] = json.loads(capsys.readouterr().out)
    assert [found["count"] for found in counts.values()] == [2, 2]
    assert counts[()]["confusion"] != counts["--split", "train"]["confusion"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--views", "many"), "SEGMENTSxCROPS"),
        (("--data", "nowhere"), "nowhere"),
        (("--model", "nowhere"), "nowhere doesn't exist"),
        (("--split", "moon"), "no split 'moon'"),
    ],
)
def test_a_bad_request_is_one_line_and_exit_code_2(model, manifest, options, words, capsys):
    assert command("--data", manifest, "--model", model, *options) == 2
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert line.startswith("videomae: error: ")
    assert words in line


def test_all_bad_is_exit_code_2(model, tmp_path, capsys):
    data = tmp_path / "list.csv"
    data.write_text("path,label\ngone.mp4,left\n")
    assert command("--data", data, "--model", model) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "none of the 1 videos" in lines[1]


def test_without_a_model_the_boxed_one_is_used(manifest, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(boxed, "FOLDER", tmp_path / "nothing")
    assert command("--data", manifest) == 2
    assert "lacks the boxed model" in capsys.readouterr().err
