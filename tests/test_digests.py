"""sha256 of files, in the background and not."""

import contextlib
import hashlib
import json
import threading
from pathlib import Path

import pytest

from convert.digests import CHUNK, Digests, digest_files, sha256
from tests.folders import run, write_folder, write_json

SIZES = (0, 1, 1000, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3)


def write(path: Path, size: int) -> Path:
    path.write_bytes(bytes(index % 251 for index in range(1000)) * (size // 1000 + 1))
    with path.open("r+b") as file:
        file.truncate(size)
    return path


def wanted(path: Path) -> dict[str, object]:
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return {"name": path.name, "bytes": len(content), "sha256": digest}


def test_digests_of_files_of_any_size(tmp_path):
    files = [write(tmp_path / f"{size}.bin", size) for size in SIZES]
    with Digests(files) as digests:
        assert digests.results() == [wanted(file) for file in files]
    assert digest_files(files) == [wanted(file) for file in files]
    assert [sha256(file) for file in files] == [wanted(file)["sha256"] for file in files]


def test_a_link_has_its_own_name_and_the_content_it_leads_to(tmp_path):
    file = write(tmp_path / "blob", 1000)
    (tmp_path / "link").symlink_to(file)
    with Digests([tmp_path / "link", file]) as digests:
        assert digests.results() == [wanted(file) | {"name": "link"}, wanted(file)]


def test_the_same_file_is_read_once(tmp_path):
    file = write(tmp_path / "file", 3)
    with Digests([file, file]) as digests:
        assert digests.results() == [wanted(file)]


def test_names_below_a_folder(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    file = write(tmp_path / "a" / "b" / "c", 3)
    assert digest_files([file], relative_to=tmp_path) == [wanted(file) | {"name": "a/b/c"}]


def test_a_file_that_vanishes_is_an_error(tmp_path):
    with Digests([tmp_path / "gone"]) as digests, pytest.raises(FileNotFoundError, match="gone"):
        digests.results()


class Endless:
    """A file that takes long to read."""

    reads = 0
    most = 10**7

    def __init__(self):
        self.started = threading.Event()

    def open(self, *mode, **options):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def readinto(self, buffer):
        self.started.set()
        self.reads += 1
        return 1 if self.reads < self.most else 0


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("sha256")]


def test_what_failed_waits_for_no_digest():
    large, next_one = Endless(), Endless()
    with contextlib.suppress(RuntimeError), Digests([large, next_one]):
        assert large.started.wait(60)
        assert len(threads()) == 1
        raise RuntimeError("failed")
    assert 0 < large.reads < large.most
    assert next_one.reads == 0
    assert threads() == []


def test_stopped_digests_are_not_digests(tmp_path):
    assert sha256(write(tmp_path / "file", 3), [True]) == ""


def test_a_refused_source_leaves_no_thread(tmp_path, capsys):
    folder = write_folder(tmp_path / "in", num_hidden_layers=4)
    assert run(folder, tmp_path / "out") == 2
    assert "never filled" in capsys.readouterr().err
    assert threads() == []


def test_what_was_written_has_its_digest(tmp_path):
    folder, out = write_folder(tmp_path / "in"), tmp_path / "out"
    write_json(folder / "preprocessor_config.json", {"crop_size": {"height": 12, "width": 20}})
    assert run(folder, out) == 0
    report = json.loads((out / "conversion.json").read_text(encoding="utf-8"))
    files = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
    # These two come after it, config.json last of all.
    del files["conversion.json"], files["config.json"]
    written = {file["name"]: file for file in report["written"]}
    assert len(written) == len(report["written"])
    assert written == {name: wanted(path) | {"name": name} for name, path in files.items()}
    assert {"labels.json", "processing.json"} < set(written)
    assert any(name.startswith("params/") for name in written)
