import json

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tpu.job import BrokenOffError, Job, JobError, result_schema
from tpu.opening import open_results
from tpu.part_files import read_rows, write_part
from tpu.place import Place
from tpu.results import intervals
from tpu.shards import BLOCK, Shard

JOB = Job(
    manifest="m",
    rows=40,
    model="d",
    task="classify",
    views="1x1",
    sampling="uniform",
    rate=4,
    dtype="float32",
    num_heads=2,
    top_k=2,
    format="parquet",
)
EMBED = Job(**JOB.to_dict() | {"task": "embed", "top_k": 0})
MANIFEST = pa.schema([("path", pa.string()), ("label", pa.int16())])


def schema(job=JOB):
    return result_schema(job, MANIFEST, width=3)


def row(number, *, error=None, job=JOB):
    answer = (
        {"indices": [4, 1], "labels": ["e", "b"], "probabilities": [0.75, 0.25]}
        if job.task == "classify"
        else {"embedding": np.array([number, 0.5, -1], np.float32)}
    )
    told = {"frames": 9, "duration_s": 1.5, "decode_s": 0.1, "retries": 0, "error": error}
    passed = {"row": number, "path": f"{number}.mp4", "label": number % 3}
    return {**passed, **({} if error else answer), **told}


@pytest.fixture(params=["local", "memory"])
def out(request, tmp_path):
    if request.param == "local":
        yield str(tmp_path / "out")
        return
    bucket = fsspec.filesystem("memory")
    yield "memory://bucket/out"
    bucket.store.clear()
    bucket.pseudo_dirs[:] = [""]


def files(out):
    filesystem, root = fsspec.core.url_to_fs(out)
    return sorted(filesystem.glob(f"{root}/part-*"))


def read(out, format="parquet"):
    filesystem, _ = fsspec.core.url_to_fs(out)
    tables = []
    for path in files(out):
        with filesystem.open(path) as file:
            if format == "parquet":
                tables.append(pd.read_parquet(file))
            else:
                tables.append(pd.DataFrame(map(json.loads, file.read().decode().splitlines())))
    return pd.concat(tables).sort_values("row").reset_index(drop=True)


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
@pytest.mark.parametrize("task", ["classify", "embed"])
def test_rows_are_read_back_as_they_were_added(out, format, task):
    job = Job(**JOB.to_dict() | {"task": task, "format": format})
    added = [row(0, job=job), row(7, error="is empty", job=job), row(8, job=job)]
    with open_results(out, job, schema(job)) as results:
        for each in reversed(added):
            results.add(each)
        assert files(out) == []
    found = read(out, format)
    assert list(found.columns) == schema(job).names
    assert list(found["row"]) == [0, 7, 8]
    for (_, have), want in zip(found.iterrows(), added, strict=True):
        for name, value in want.items():
            if isinstance(value, list | np.ndarray):
                assert list(have[name]) == list(value)
            elif value is None:
                assert pd.isna(have[name])
            else:
                assert have[name] == pytest.approx(value)
    answer = "embedding" if task == "embed" else "labels"
    assert found[answer].isna().tolist() == [False, True, False]


def test_what_is_done_is_known_to_the_next_run(out):
    with open_results(out, JOB, schema(), rows_a_part=2) as results:
        assert results.to_do().tolist() == list(range(40))
        for number in (3, 4, 5, 9):
            results.add(row(number, error="is empty" if number == 4 else None))
        assert len(files(out)) == 2
    with open_results(out, JOB, schema()) as results:
        assert results.to_do(limit=11).tolist() == [0, 1, 2, 6, 7, 8, 10]
        assert results.errors == 1
        # The first answer counts.
        results.add(row(3, error="late"))
        results.add(row(6))
        results.add(row(6, error="late"))
    found = read(out)
    assert found["row"].tolist() == [3, 4, 5, 6, 9]
    assert found["error"].notna().tolist() == [False, True, False, False, False]


def test_parts_and_notes_that_are_missing(out, caplog):
    filesystem, root = fsspec.core.url_to_fs(out)
    with open_results(out, JOB, schema(), rows_a_part=1) as results:
        for number in (1, 2, 3, 4):
            results.add(row(number, error="cut short" if number == 2 else None))
    notes = sorted(filesystem.glob(f"{root}/_job/done/*.json"))
    by_row = {json.loads(filesystem.cat_file(path))["rows"][0][0]: path for path in notes}
    # Killed between a part and its note; a note that was damaged; a part that somebody removed.
    filesystem.rm_file(by_row[2])
    filesystem.pipe_file(by_row[3], b'{"rows": [[3,')
    part = by_row[4].rpartition("/")[2].removesuffix(".json")
    filesystem.rm_file(f"{root}/{part}.parquet")
    with open_results(out, JOB, schema()) as results:
        assert results.to_do(limit=6).tolist() == [0, 4, 5]
        assert results.errors == 1
    assert "is gone: its rows are done again" in caplog.text
    caplog.clear()
    notes = [
        json.loads(filesystem.cat_file(path)) for path in filesystem.glob(f"{root}/_job/done/*")
    ]
    assert sorted(note["rows"] for note in notes) == [[[1, 2]], [[2, 3]], [[3, 4]]]
    with open_results(out, JOB, schema()) as results:
        assert results.to_do(limit=6).tolist() == [0, 4, 5]
    assert not caplog.text


def test_what_is_added_is_written_even_when_the_job_fails(out):
    def fail(results):
        results.add(row(5))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), open_results(out, JOB, schema()) as results:
        fail(results)
    assert read(out)["row"].tolist() == [5]


@pytest.mark.parametrize("failing", [".parquet", ".json"])
def test_a_part_whose_writing_fails_is_written_once(out, failing, monkeypatch):
    failures = []

    def write(self, content, *names, shard):
        written(self, content, *names, shard=shard)
        # It has arrived, and nobody was told so.
        if names[-1].endswith(failing) and not failures and "part-" in names[-1]:
            failures.append(names)
            raise OSError("no answer")

    def add_rows():
        with open_results(out, JOB, schema()) as results:
            results.add(row(5))
            with pytest.raises(BrokenOffError, match="any more"):
                results.flush()
            assert not results.add(row(5, error="late"))
            assert results.add(row(6))

    written = Place.write
    monkeypatch.setattr(Place, "write", write)
    add_rows()
    found = read(out)
    assert found["row"].tolist() == [5, 6]
    assert found["error"].isna().all()
    with open_results(out, JOB, schema()) as results:
        assert results.done.nonzero()[0].tolist() == [5, 6]


def test_what_comes_too_late_is_not_written(out):
    with open_results(out, JOB, schema(), rows_a_part=1) as results:
        results.add(row(5))
    assert not results.add(row(6))
    results.flush()
    assert read(out)["row"].tolist() == [5]


def test_an_error_of_the_job_s_own_is_not_blamed_on_out(out):
    with pytest.raises(FileNotFoundError, match=r"x\.mp4"), open_results(out, JOB, schema()):
        raise FileNotFoundError("x.mp4")


def test_trouble_that_passes_does_not_end_the_job(out, monkeypatch):
    trouble = [ConnectionResetError("gone")]

    def write(self, *arguments, **named):
        if trouble:
            raise trouble.pop()
        return written(self, *arguments, **named)

    written = Place._write
    with open_results(out, JOB, schema()) as results:
        monkeypatch.setattr(Place, "_write", write)
        results.add(row(5))
        results.flush()
        assert not trouble
    assert read(out)["row"].tolist() == [5]


def fill(out, job=JOB, shard=None):
    """Parts of two rows; 1 and 5 are bad, and all of the last."""
    with open_results(out, job, schema(job), rows_a_part=2, shard=shard) as results:
        for number in range(8):
            bad = number in (1, 5, 6, 7)
            results.add(row(number, error="is empty" if bad else None, job=job))


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_failed_rows_are_done_again(out, format):
    job = Job(**JOB.to_dict() | {"format": format})
    fill(out, job)
    with open_results(out, job, schema(job)) as results:
        results.forget_failed()
        assert results.to_do(limit=8).tolist() == [1, 5, 6, 7]
        assert results.errors == 0
        assert read(out, format)["row"].tolist() == [0, 2, 3, 4]
        assert results.add(row(5, error="is empty", job=job))
        assert results.add(row(6, job=job))
    with open_results(out, job, schema(job)) as results:
        assert results.to_do(limit=8).tolist() == [1, 7]
        assert results.errors == 1
    found = read(out, format)
    assert found["row"].tolist() == [0, 2, 3, 4, 5, 6]
    assert found["error"].notna().sum() == 1
    assert list(found.columns) == schema(job).names
    assert list(found["labels"][0]) == ["e", "b"]


def test_of_the_first_rows_only_the_failed_are_done_again(out):
    fill(out)
    with open_results(out, JOB, schema()) as results:
        results.forget_failed(limit=7)
        assert results.to_do(limit=8).tolist() == [1, 5, 6]
        assert results.errors == 1
    assert read(out)["row"].tolist() == [0, 2, 3, 4, 7]


def test_killed_while_failed_rows_are_taken_out(out, monkeypatch):
    """At any step: a row is in OUT, or to do, and never both."""
    steps = 0
    while True:
        filesystem, root = fsspec.core.url_to_fs(out)
        if filesystem.exists(root):
            filesystem.rm(root, recursive=True)
        fill(out)
        if not killed_after(steps, out, monkeypatch):
            break
        with open_results(out, JOB, schema()) as results:
            to_do = results.to_do(limit=8).tolist()
        rows = read(out)["row"].tolist()
        assert sorted(rows + to_do) == list(range(8))
        assert {0, 2, 3, 4} <= set(rows)
        steps += 1
    assert steps == 3 + 3 + 2


def killed_after(steps, out, monkeypatch):
    """Whether as many calls change something."""
    left = [steps]

    def counted(method):
        def call(self, *arguments, **named):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return method(self, *arguments, **named)

        return call

    with open_results(out, JOB, schema()) as results, monkeypatch.context() as patch:
        for name in ("write", "remove"):
            patch.setattr(Place, name, counted(getattr(Place, name)))
        try:
            results.forget_failed()
        except KeyboardInterrupt:
            return True
    return False


@pytest.mark.parametrize("shard", [Shard(0, 2), Shard(0, 3)])
def test_failed_rows_of_parts_that_are_not_the_shard_s_own_are_left(out, shard):
    fill(out)
    before = files(out)
    words = f"of other shards than {shard}: say --retry-failed"
    with (
        open_results(out, JOB, schema(), shard=shard) as results,
        pytest.raises(JobError, match=words),
    ):
        results.forget_failed()
    assert files(out) == before
    # What one of two shards wrote is within the whole.
    fill(out + "-halves", shard=Shard(0, 2))
    with open_results(out + "-halves", JOB, schema()) as results:
        results.forget_failed()
        assert results.to_do(limit=8).tolist() == [1, 5, 6, 7]


def test_parts_of_other_shards_are_not_looked_at(tmp_path):
    out = tmp_path / "out"
    fill(str(out), shard=Shard(0, 2))
    for path in [*out.glob("part-*"), *out.glob("_job/done/*")]:
        path.write_bytes(b"being written")
    with open_results(str(out), JOB, schema(), shard=Shard(1, 2)) as results:
        assert not results.done.any()


def test_old_rows_do_not_wait_for_a_full_part(out):
    with open_results(out, JOB, schema(), seconds_a_part=0.0) as results:
        results.add(row(5))
        assert read(out)["row"].tolist() == [5]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dtype": "bfloat16"}, "--dtype was float32, now bfloat16"),
        ({"model": "e"}, "the model is another"),
        ({"manifest": "e", "rows": 41}, "the manifest has other rows; rows of the manifest was 40"),
        ({"views": "5x3", "rate": 2}, "--views was 1x1, now 5x3; --sampling-rate was 4, now 2"),
        ({"format": "jsonl"}, "--format was parquet, now jsonl"),
    ],
)
def test_another_job_on_the_same_out_is_refused(out, change, words):
    with open_results(out, JOB, schema()) as results:
        results.add(row(5))
    other = Job(**JOB.to_dict() | change)
    with pytest.raises(JobError) as error, open_results(out, other, schema(other)):
        pass
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    with open_results(out, JOB, schema()) as results:
        assert results.done.sum() == 1


def test_folders_with_other_things_are_left_alone(out, tmp_path):
    filesystem, root = fsspec.core.url_to_fs(out)
    filesystem.makedirs(root, exist_ok=True)
    filesystem.pipe_file(f"{root}/thesis.txt", b"x")
    with pytest.raises(JobError, match=r"holds other things \(thesis.txt\); name a new"):
        open_results(out, JOB, schema()).__enter__()
    assert filesystem.cat_file(f"{root}/thesis.txt") == b"x"
    assert len(filesystem.ls(root)) == 1


def test_a_file_is_no_out(tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(JobError, match="is a file; name a folder"):
        open_results(str(tmp_path / "out"), JOB, schema()).__enter__()


def test_out_of_an_unknown_kind():
    with pytest.raises(JobError, match="nowhere://x can't be opened"):
        open_results("nowhere://x", JOB, schema()).__enter__()


def test_a_damaged_part_is_named(tmp_path):
    out = tmp_path / "out"
    with open_results(str(out), JOB, schema()) as results:
        results.add(row(5))
    (part,) = out.glob("part-*")
    part.write_bytes(part.read_bytes()[:-9])
    (note,) = (out / "_job/done").iterdir()
    note.unlink()
    with pytest.raises(JobError, match=f"{part.name} is damaged"):
        open_results(str(out), JOB, schema()).__enter__()
    part.unlink()
    with open_results(str(out), JOB, schema()) as results:
        assert not results.done.any()


def test_the_same_row_in_two_parts_is_refused(tmp_path):
    out = tmp_path / "out"
    with open_results(str(out), JOB, schema()) as results:
        results.add(row(5))
    (part,) = out.glob("part-*")
    (out / "part-copy.parquet").write_bytes(part.read_bytes())
    with pytest.raises(JobError, match="holds rows that another part holds, too"):
        open_results(str(out), JOB, schema()).__enter__()


def test_what_a_killed_run_left_half_written_is_removed(tmp_path):
    out = tmp_path / "out"
    with open_results(str(out), JOB, schema()):
        (out / "_job/tmp-0-of-1-abc").write_bytes(b"half")
        (out / "_job/tmp-1-of-2-abc").write_bytes(b"another shard's")
    with open_results(str(out), JOB, schema()):
        names = {path.name for path in (out / "_job").iterdir()}
        assert "tmp-0-of-1-abc" not in names
        assert "tmp-1-of-2-abc" in names


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_parts_say_which_rows_they_hold(format):
    content = write_part([row(8), row(3, error="x"), row(30)], schema(), format)
    numbers, errors = read_rows(content, format)
    assert numbers.tolist() == [8, 3, 30]
    assert errors == 1


def test_ends_of_lines_within_a_text_are_none_of_a_part():
    added = row(8, error="a\u2028b\u0085c\vd\ne\rf")
    content = write_part([added, row(9)], schema(), "jsonl")
    assert content.count(b"\n") == 2
    assert read_rows(content, "jsonl")[0].tolist() == [8, 9]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_json_has_no_word_for_what_is_no_number(value):
    (line,) = write_part([row(8) | {"duration_s": value}], schema(), "jsonl").splitlines()
    strict = json.loads(line, parse_constant=pytest.fail)
    assert strict["duration_s"] is None


def test_intervals():
    assert intervals(np.array([], np.int64)) == []
    assert intervals(np.array([4])) == [[4, 5]]
    assert intervals(np.array([0, 1, 2, 5, 7, 8])) == [[0, 3], [5, 6], [7, 9]]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_share_all_rows(count):
    total = 5 * BLOCK + 17
    shards = [Shard(index, count) for index in range(count)]
    rows = np.concatenate([shard.rows(total) for shard in shards])
    assert sorted(rows.tolist()) == list(range(total))
    halves = [shards[0].of(index, 2).rows(total) for index in range(2)]
    assert sorted(np.concatenate(halves).tolist()) == shards[0].rows(total).tolist()


@pytest.mark.parametrize("one", [Shard(0, 1), Shard(1, 2), Shard(2, 4), Shard(1, 6), Shard(5, 6)])
@pytest.mark.parametrize("other", [Shard(0, 1), Shard(0, 2), Shard(3, 4), Shard(2, 3)])
def test_which_shards_overlap(one, other):
    total = 12 * BLOCK
    common = np.intersect1d(one.rows(total), other.rows(total))
    assert one.overlaps(other) == bool(len(common))
    assert one.is_within(other) == (len(common) == len(one.rows(total)))


@pytest.mark.parametrize("text", ["", "1", "2/2", "-1/2", "0/0", "a/b", "1/2/3"])
def test_bad_shards(text):
    with pytest.raises(ValueError, match="a shard i"):
        Shard.parse(text)
    assert Shard.parse("1/4") == Shard(1, 4)
