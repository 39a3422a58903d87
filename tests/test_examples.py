"""Lists, tables and folders of videos -> examples, and what is wrong with the others."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from videomae_jax.training.examples import (
    check_alike,
    read_examples,
    read_sets,
    rows_of_split,
    splits_of,
)
from videomae_jax.training.listing import ExamplesError, read_rows


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name, content, folder=None):
    path = folder / name if folder else name
    if isinstance(content, pa.Table):
        pq.write_table(content, path)
    else:
        with open(path, "wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode())
    return path


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


NUMBERED = {
    "the original's list": ("x.csv", "v/a.mp4 2\nv/b c.mp4 0\n"),
    "commas": ("x.txt", "v/a.mp4,2\nv/b c.mp4, 0"),
    "tabs, a mark, blank lines": ("x.list", "\ufeffv/a.mp4\t2\r\n\r\nv/b c.mp4\t0\r\n"),
    "a number of frames between": ("x.csv", "v/a.mp4 120 2\nv/b c.mp4 90 0\n"),
    "quotes": ("x.csv", '"v/a.mp4",2\n"v/b c.mp4",0\n'),
    "a header": ("x.csv", "label,path\n2,v/a.mp4\n0,v/b c.mp4\n"),
    "a header, by tabs": ("x.tsv", "path\tmore\tlabel\nv/a.mp4\t9\t2\nv/b c.mp4\t9\t0\n"),
    "a header in a text": ("x.txt", "path,label\nv/a.mp4,2\nv/b c.mp4,0\n"),
    "Parquet": ("x.parquet", pa.table({"path": ["v/a.mp4", "v/b c.mp4"], "label": [2, 0]})),
    "whole floats": ("x.csv", "path,label\nv/a.mp4,2.0\nv/b c.mp4,0.0\n"),
}


@pytest.mark.parametrize("case", NUMBERED)
def test_numbers(here, case):
    found = read_examples(write(*NUMBERED[case]))
    assert found.paths == ["v/a.mp4", "v/b c.mp4"]
    assert found.labels.dtype == np.int32
    assert found.labels.tolist() == [2, 0]
    assert (found.classes, found.num_labels) == (None, 3)


NAMED = {
    "a list": ("x.txt", "a.mp4 riding a bike\nb.mp4 archery\n"),
    "a list by commas": ("x.csv", "a.mp4,riding a bike\nb.mp4,archery\n"),
    "a table": ("x.csv", "path,label\na.mp4,riding a bike\nb.mp4,archery\n"),
    "dictionaries": (
        "x.parquet",
        pa.table(
            {
                "path": ["a.mp4", "b.mp4"],
                "label": pa.array(["riding a bike", "archery"]).dictionary_encode(),
            }
        ),
    ),
}


@pytest.mark.parametrize("case", NAMED)
def test_names(here, case):
    found = read_examples(write(*NAMED[case]))
    assert found.paths == ["a.mp4", "b.mp4"]
    assert found.labels.tolist() == [1, 0]
    assert found.classes == ("archery", "riding a bike")


def test_videos_without_a_suffix(here):
    found = read_examples(write("x.txt", "frames/one 3\nframes/two 1\n"))
    assert found.paths == ["frames/one", "frames/two"]
    assert found.labels.tolist() == [3, 1]


def test_digits_that_are_a_name(here):
    found = read_examples(write("x.csv", "path,label\na.mp4,007\nb.mp4,bond\n"), kind="none")
    assert found.labels is None
    with pytest.raises(ExamplesError, match=r"row 0 .* label '007' is a number, most others"):
        read_examples(write("x.csv", "path,label\na.mp4,007\nb.mp4,bond\nc.mp4,m\n"))


def test_a_folder_per_class(here):
    touch(here, "d/run/2.mp4", "d/run/deep/1.avi", "d/jump/3.WEBM", "d/jump/note.txt", "d/.x/4.mp4")
    found = read_examples("d")
    assert found.paths == ["d/jump/3.WEBM", "d/run/2.mp4", "d/run/deep/1.avi"]
    assert found.labels.tolist() == [0, 1, 1]
    assert found.classes == ("jump", "run")
    assert splits_of("d") == ()
    assert len(read_examples("d", split="train")) == 3


def test_classes_are_numbered_over_all_splits(here):
    touch(here, "d/train/b/1.mp4", "d/train/c/2.mp4", "d/validation/a/3.mp4", "d/test/c/4.mp4")
    assert splits_of("d") == ("train", "val", "test")
    for split, path, label in (("val", "d/validation/a/3.mp4", 0), ("test", "d/test/c/4.mp4", 2)):
        found = read_examples("d", split=split)
        assert found.paths == [path]
        assert found.labels.tolist() == [label]
        assert found.classes == ("a", "b", "c")
        assert found.num_labels == 3
    assert read_examples("d", split="train").labels.tolist() == [1, 2]
    assert len(read_examples("d")) == 4


def test_the_sets_of_a_run(here):
    touch(here / "v", "Train/up/a.mp4", "Train/in/b.mp4", "Val/up/c.mp4", "Test/in/d.mp4")
    write("more.csv", "path,label\nd.mp4,up\n")
    train, validation = read_sets("v")
    assert (train.paths, validation.paths) == (
        ["v/Train/in/b.mp4", "v/Train/up/a.mp4"],
        ["v/Val/up/c.mp4"],
    )
    assert (train.classes, validation.labels.tolist()) == (("in", "up"), [1])
    assert read_sets("v", parts=("test", "val"))[1].paths == ["v/Test/in/d.mp4"]
    assert read_sets("v/Train")[1] is None
    assert read_sets("v/Train", "v")[1].paths == ["v/Val/up/c.mp4"]
    train, validation = read_sets("v", "more.csv")
    assert (train.classes, validation.labels.tolist()) == (("in", "up"), [1])


@pytest.mark.parametrize("kind", ["single", "regression"])
def test_a_split_that_is_not_asked_for_needs_no_labels(here, kind):
    table = "path,label,split\nd.mp4,,test\na.mp4,1,train\nb.mp4,4,val\nc.mp4,,test\n"
    train, validation = read_sets(write("x.csv", table), kind=kind)
    assert (train.paths, train.labels.ravel().tolist()) == (["a.mp4"], [1])
    assert (validation.paths, validation.labels.ravel().tolist()) == (["b.mp4"], [4])
    assert train.num_labels == (5 if kind == "single" else 1)
    with pytest.raises(ExamplesError, match=r"row 0 .*label"):
        read_examples("x.csv", split="test", kind=kind)


def test_sets_that_can_not_be_held_against_each_other(here):
    numbers = read_examples(write("numbers.csv", "a.mp4 0\nb.mp4 1\n"))
    more = read_examples(write("more.csv", "a.mp4 0\nb.mp4 2\n"))
    names = read_examples(write("names.csv", "a.mp4 in\nb.mp4 up\n"))
    several = read_examples(write("several.csv", "a.mp4 0;1\nb.mp4 2\n"), kind="multi")
    check_alike(numbers, more, num_labels=3)
    for other, words in (
        (more, "has class 2, the training set has 2"),
        (names, "different names"),
        (several, "has 3 labels a video, the training set has 2"),
        (read_examples("numbers.csv", kind="none"), "no labels"),
    ):
        with pytest.raises(ExamplesError, match=words):
            check_alike(numbers, other, num_labels=2)


def test_splits_among_other_folders_are_no_classes(here):
    touch(here / "v", "train/up/a.mp4", "val/up/c.mp4", "notes/b.mp4")
    with pytest.raises(ExamplesError, match="has train/ and val/, and notes/ beside them"):
        read_rows("v")


def test_the_lists_of_a_folder(here):
    write("train.csv", "a.mp4 1\nb.mp4 0\n")
    write("val.txt", "c.mp4 2\n")
    touch(here, "a.mp4", "b.mp4", "c.mp4")
    assert splits_of(".") == ("train", "val")
    assert read_examples(".", split="val").paths == ["c.mp4"]
    assert read_examples(".", split="train").num_labels == 3


def test_a_folder_of_videos_with_a_manifest(here):
    write("manifest.csv", "path,label\nb.mp4,left\na.mp4,right\n")
    touch(here, "a.mp4", "b.mp4")
    assert read_examples(".").paths == ["b.mp4", "a.mp4"]


def test_a_column_of_splits(here):
    text = "path,label,split\na.mp4,x,Training\nb.mp4,y,valid\nc.mp4,z,fold3\n"
    source = write("x.csv", text)
    assert splits_of(source) == ("train", "val", "fold3")
    assert read_examples(source, split="validation").labels.tolist() == [1]
    assert read_examples(source, split="fold3").paths == ["c.mp4"]
    folds = write("y.csv", "path,label,split\na.mp4,x,1\nb.mp4,y,2\n")
    assert splits_of(folds) == ("1", "2")
    assert read_examples(folds, split="2").paths == ["b.mp4"]
    rows = rows_of_split(read_rows(source), "val")
    assert (rows.paths, rows.labels, rows.splits) == (["b.mp4"], ["y"], ["val"])
    assert rows.where(0) == "x.csv, row 1 (the first is 0)"


def test_without_labels(here):
    touch(here, "d/b.mp4", "d/a.mp4", "d/more/c.mp4")
    found = read_examples("d", kind="none")
    assert found.paths == ["d/a.mp4", "d/b.mp4", "d/more/c.mp4"]
    assert (found.labels, found.classes, found.num_labels) == (None, None, 0)
    for text in ("a b.mp4\nc.mp4\n", "a b.mp4 0 -1\nc.mp4 0 -1\n", "a b.mp4 name\nc.mp4 name\n"):
        assert read_examples(write("x.txt", text), kind="none").paths == ["a b.mp4", "c.mp4"]
    assert read_examples("d/a.mp4", kind="none").paths == ["d/a.mp4"]


def test_several_classes_a_video(here):
    lists = pa.table({"path": ["a.mp4", "b.mp4", "c.mp4"], "label": [["y", "x"], [], ["z"]]})
    sources = [
        write("x.parquet", lists),
        write("x.csv", "path,label\na.mp4,y;x\nb.mp4,\nc.mp4,z\n"),
        write("x.txt", "a.mp4 y; x\nb.mp4\nc.mp4 z\n"),
    ]
    for source in sources:
        found = read_examples(source, kind="multi")
        assert found.labels.dtype == np.float32
        assert found.labels.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
        assert found.classes == ("x", "y", "z")
    numbers = read_examples(write("y.txt", "a.mp4 3 0\nb.mp4 1;2\n"), kind="multi")
    assert numbers.labels.tolist() == [[1, 0, 0, 1], [0, 1, 1, 0]]
    assert (numbers.classes, numbers.num_labels) == (None, 4)


def test_numbers_to_be_predicted(here):
    found = read_examples(write("x.txt", "a.mp4 0.5\nb.mp4 -2\n"), kind="regression")
    assert found.labels.dtype == np.float32
    assert found.labels.tolist() == [[0.5], [-2]]
    assert found.num_labels == 1
    table = pa.table({"path": ["a.mp4", "b.mp4"], "label": [[1.0, 2.0], [3.0, 4.5]]})
    assert read_examples(write("x.parquet", table), kind="regression").labels[1].tolist() == [
        3,
        4.5,
    ]
    two = read_examples(write("y.csv", "path,label\na.mp4,1;2\nb.mp4,3;4\n"), kind="regression")
    assert two.labels.tolist() == [[1, 2], [3, 4]]


def test_a_model_numbers_the_classes(here):
    source = write("x.txt", "a.mp4 up\nb.mp4 down\n")
    found = read_examples(source, classes=["down", "left", "up"])
    assert found.labels.tolist() == [2, 0]
    assert found.classes == ("down", "left", "up")
    with pytest.raises(ExamplesError, match=r"x.txt, line 1: no class 'up' among 1 \(down\)"):
        read_examples(source, classes=["down"])
    numbers = write("y.txt", "a.mp4 1\nb.mp4 3\n")
    with pytest.raises(ExamplesError, match=r"y.txt, line 2: class numbers are 0 to 1, got \[3\]"):
        read_examples(numbers, classes=["down", "up"])


def test_what_relative_paths_are_meant_from(here):
    (here / "lists").mkdir()
    touch(here, "here.mp4", "lists/there.mp4")
    for name, path in (("here.mp4", "here.mp4"), ("there.mp4", "lists/there.mp4")):
        source = write("lists/x.txt", f"{name} 0\nother.mp4 1\n/abs.mp4 1\n")
        prefix = path.removesuffix(name)
        assert read_examples(source).paths == [path, f"{prefix}other.mp4", "/abs.mp4"]
    assert read_examples(source, root="r").paths == ["r/there.mp4", "r/other.mp4", "/abs.mp4"]


REFUSED = {
    "missing": ("none.txt", None, {}, "^none.txt: doesn't exist; check the path"),
    "empty": ("x.txt", "\n \n", {}, "x.txt: has no videos; give a folder or a list"),
    "no labels": ("x.txt", "a.mp4\nb.mp4\n", {}, "x.txt: has no labels; write one behind each"),
    "one without": ("x.txt", "a.mp4 1\n\nb.mp4\n", {}, "x.txt, line 3: has no label; write one"),
    "a null": (
        "x.parquet",
        pa.table({"path": ["a.mp4", "b.mp4"], "label": [1, None]}),
        {},
        r"x.parquet, row 1 \(the first is 0\): has no label",
    ),
    "negative": ("x.txt", "a.mp4 -1\n", {}, r"line 1: class numbers are 0 or more, got \[-1\]"),
    "part": ("x.csv", "path,label\na.mp4,1\nb.mp4,1.5\n", {}, "row 1 .* label 1.5 is no class"),
    "mixed": ("x.txt", "a.mp4 1\nb.mp4 2\nc.mp4 up\n", {}, "line 3: label 'up' is a name, most"),
    "header": ("x.csv", "file,label\na.mp4,1\n", {}, "line 1: 'file' is no video; if it is a head"),
    "no column": ("x.parquet", pa.table({"file": ["a"]}), {}, r"no column `path` \(but file\)"),
    "no path": ("x.csv", "path,label\n ,1\n", {}, r"row 0 .* path must be text, got ' '"),
    "no split there": ("x.txt", "a.mp4 1\n", {"split": "val"}, "no split 'val'; there are none"),
    "another split": (
        "x.csv",
        "path,label,split\na.mp4,1,test\n",
        {"split": "train"},
        "has no split 'train'; there are test",
    ),
    "no split in a row": (
        "x.csv",
        "path,label,split\na.mp4,1,train\nb.mp4,1,\n",
        {},
        r"row 1 \(the first is 0\): has no split; write train, val or test",
    ),
    "several": (
        "x.parquet",
        pa.table({"path": ["a.mp4"], "label": [[1, 2]]}),
        {},
        "row 0 .* several labels .*kind multi",
    ),
    "no number": ("x.txt", "a.mp4 up\n", {"kind": "regression"}, "line 1: label 'up' is no number"),
    "not finite": ("x.txt", "a.mp4 nan\n", {"kind": "regression"}, "must be finite numbers, got"),
    "fewer": (
        "x.txt",
        "a.mp4 1;2\nb.mp4 1\n",
        {"kind": "regression"},
        "line 2: has 1 numbers, the first has 2",
    ),
    "a URL": ("x.txt", "gs://b/a.mp4 1\n", {}, "line 1: gs://b/a.mp4 is a URL; training reads"),
    "Latin-1": ("x.txt", b"a.mp4 1\n\xfc.mp4 1\n", {}, r"x.txt: is not UTF-8 \(line 2\)"),
    "a video": ("x.txt", b"\0\0\0 ftypisom", {}, "x.txt: is no text"),
    "no Parquet": ("x.parquet", b"PAR1", {}, "x.parquet: is no Parquet file"),
    "ragged": ("x.csv", "path,label\na.mp4,1\nb.mp4\n", {}, "x.csv: can't be parsed"),
    "another kind": ("x.txt", "a.mp4 1\n", {"kind": "some"}, "kind must be one of single, multi"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(here, case):
    name, content, options, message = REFUSED[case]
    if content is not None:
        write(name, content)
    with pytest.raises(ValueError, match=message) as caught:
        read_examples(name, **options)
    assert "\n" not in str(caught.value)


def test_a_video_that_is_in_no_class(here):
    touch(here, "d/a/1.mp4", "d/stray.mp4")
    with pytest.raises(ExamplesError, match=r"^d/stray.mp4: has no label; write one, or leave"):
        read_examples("d")


def test_a_folder_without_videos(here):
    touch(here, "d/a/notes.txt")
    with pytest.raises(ExamplesError, match=r"^d: has no videos"):
        read_examples("d", kind="none")


def test_without_the_extra(here, monkeypatch):
    import sys

    for name in [name for name in sys.modules if name.split(".")[0] == "pyarrow"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ExamplesError, match=r"pip install 'videomae-jax\[train\]'"):
        read_examples(write("x.txt", "a.mp4 1\n"))
