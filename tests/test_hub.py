"""Ids on the hub, against a local stand-in of its cache: what is found, and what is said if not."""

import io
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import errors

import videomae_jax as vm
from convert import hub
from convert.errors import ConversionError
from tests.folders import refusal, run, write_folder, write_json
from tests.hub_cache import COMMIT, write_repository
from tests.hub_server import serve

ROOT = Path(__file__).parents[1]
ID = "MCG-NJU/videomae-tiny"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub's library, which conftest.py keeps offline."""
    folder = tmp_path / "hub"
    right = huggingface_hub.snapshot_download

    def download(*arguments, **options):
        return right(*arguments, cache_dir=str(folder), **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return folder


@pytest.fixture
def snapshot(cache, tmp_path):
    return write_repository(cache, ID, write_folder(tmp_path / "files"))


def test_an_id_is_converted_and_its_revision_recorded(snapshot, tmp_path, capsys):
    assert run(ID, tmp_path / "out") == 0
    assert f"\nhub            {ID}, revision {COMMIT}\n" in capsys.readouterr().out
    source = json.loads((tmp_path / "out" / "conversion.json").read_text())["source"]
    assert source["hub"] == {"id": ID, "revision": COMMIT}
    assert source["path"] == str(snapshot)
    digests = {file["name"]: file["sha256"] for file in source["files"]}
    assert set(digests) == {"model.safetensors", "config.json"}
    # The hub names the files in blobs/ by the digest of their content.
    for name, digest in digests.items():
        assert (snapshot / name).resolve().name == digest


def test_a_branch_is_a_revision(cache, tmp_path):
    folder = write_folder(tmp_path / "files", hidden_act="relu")
    write_repository(cache, ID, folder, commit="f" * 40, branch="experiment")
    assert run(ID, tmp_path / "out", "--revision", "experiment") == 0
    assert vm.load(tmp_path / "out").conversion["source"]["hub"]["revision"] == "f" * 40
    assert hub.fetch(ID, revision="f" * 40).folder.name == "f" * 40


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("org/name", True),
        ("MCG-NJU/videomae-small-finetuned-kinetics", True),
        ("name", False),
        ("a/b/c", False),
        ("./org/name", False),
        ("/org/name", False),
        ("org/name/", False),
        ("../name", False),
        ("org/na me", False),
        ("", False),
        ("here/gone", False),
        ("here/file", False),
    ],
)
def test_what_reads_as_an_id(tmp_path, monkeypatch, source, wanted):
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    Path("here/file").touch()
    assert hub.is_hub_id(source) is wanted


def by_hand(revision="main"):
    return (
        f"; or download config.json, preprocessor_config.json and model.safetensors from "
        f"https://huggingface.co/{ID}/tree/{revision} into a folder and give that: "
        f"python -m convert FOLDER OUT"
    )


def test_what_is_not_cached_offline_says_what_to_download(cache, tmp_path, capsys):
    cache.mkdir()
    (problem,) = refusal(capsys, tmp_path, ID, tmp_path / "out")
    assert problem == (
        f"{ID}: no path here, and on the hub it is out of reach (HF_HUB_OFFLINE is set), and not "
        f"whole in the cache here{by_hand()}"
    )
    (problem,) = refusal(capsys, tmp_path, ID, tmp_path / "out", "--revision", "v2")
    assert problem.endswith(by_hand("v2"))


@pytest.mark.parametrize(
    ("missing", "text"),
    [
        ("config.json", "has no config.json, as far as it is cached here"),
        ("model.safetensors", "has neither model.safetensors nor pytorch_model.bin, as far as it"),
    ],
)
def test_a_repository_cached_in_part(snapshot, tmp_path, capsys, missing, text):
    (snapshot / missing).unlink()
    (problem,) = refusal(capsys, tmp_path, ID, tmp_path / "out")
    assert problem.startswith(f"{ID}: no path here, and on the hub it {text}")
    assert problem.endswith(by_hand())


def shard(folder, *, lost):
    """Two names for what is one shard each, and the index of both."""
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model-00002-of-00002.safetensors").touch()
    shards = sorted(path.name for path in folder.glob("model-*"))
    index = {"weight_map": {f"tensor {name}": name for name in shards}}
    write_json(folder / "model.safetensors.index.json", index)
    for name in lost:
        (folder / name).unlink()


@pytest.mark.parametrize(
    "lost",
    [("model-00002-of-00002.safetensors",), ("model-00001-of-00002.safetensors",)],
)
def test_a_shard_that_is_not_cached(cache, tmp_path, capsys, lost):
    folder = write_folder(tmp_path / "files")
    shard(folder, lost=lost)
    write_repository(cache, ID, folder)
    (problem,) = refusal(capsys, tmp_path, ID, tmp_path / "out")
    assert problem.startswith(f"{ID}: no path here, and on the hub it has no {lost[0]}, as far as")
    assert problem.endswith(by_hand())


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_link_that_leads_nowhere_is_no_file(snapshot, tmp_path, capsys, name):
    (snapshot / name).resolve().unlink()
    (problem,) = refusal(capsys, tmp_path, ID, tmp_path / "out")
    assert problem.startswith(f"{ID}: no path here, and on the hub it has n")
    assert problem.endswith(by_hand())


def test_a_download_that_the_library_knows_to_be_partial(snapshot, tmp_path, capsys):
    """As of a download that went away after the list of files."""
    names = ("config.json", "preprocessor_config.json", "model.safetensors")
    entries = {name: {"size": 1, "blob_id": "0" * 40} for name in names}
    trees = snapshot.parents[1] / "trees"
    trees.mkdir()
    write_json(trees / f"{COMMIT}.json", {"format_version": 1, "files": entries})
    (problem,) = refusal(capsys, tmp_path, ID, tmp_path / "out")
    assert "not whole in the cache here" in problem
    assert problem.endswith(by_hand())


class Answer:
    """What the library's errors want to know of the answer they are about."""

    headers = types.MappingProxyType({})
    request = None
    status_code = 404


def hub_error(kind):
    error = kind.__new__(kind)
    error.response = Answer()
    return error


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (hub_error(errors.RepositoryNotFoundError), "doesn't exist, or is private"),
        (hub_error(errors.GatedRepoError), "asks for permission"),
        (hub_error(errors.RevisionNotFoundError), "has no revision v2"),
        (errors.HFValidationError("odd"), "can't be: it is no valid id"),
        (errors.LocalEntryNotFoundError("offline"), "is out of reach"),
        (ConnectionError("no route\nto host"), "can't be downloaded (no route)"),
        (OSError(28, "No space left on device"), "can't be downloaded ([Errno 28] No space"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_every_way_to_fail_is_one_line(monkeypatch, error, text):
    def download(*arguments, **options):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ConversionError) as caught:
        hub.fetch(ID, revision="v2")
    (problem,) = caught.value.problems
    assert "\n" not in problem
    assert problem.startswith(f"{ID}: no path here, and on the hub it {text}")
    assert problem.endswith(by_hand("v2"))


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A stand-in for the download itself, of these files; returns {the names asked for}."""

    def of(*names):
        asked = []
        folder = tmp_path / COMMIT

        def download(repo_id, *, revision, allow_patterns, tqdm_class):
            asked.append(set(allow_patterns))
            folder.mkdir(exist_ok=True)
            for name in names:
                if any(Path(name).match(pattern) for pattern in allow_patterns):
                    (folder / name).touch()
            return str(folder)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        return folder, asked

    return of


def test_safetensors_are_preferred_and_nothing_else_is_fetched(repository):
    folder, asked = repository(
        "config.json", "model.safetensors", "pytorch_model.bin", "modeling_videomae.py", "tf.h5"
    )
    assert hub.fetch(ID) == hub.Snapshot(folder=folder, repo_id=ID, revision=COMMIT)
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert len(asked) == 1


def test_bin_files_are_fetched_where_there_is_nothing_else(repository):
    folder, asked = repository(
        "config.json",
        "pytorch_model.bin.index.json",
        "pytorch_model-00001-of-00002.bin",
        "pytorch_model-00002-of-00002.bin",
        "modeling_videomae.py",
    )
    hub.fetch(ID)
    assert len(list(folder.iterdir())) == 4
    assert len(asked) == 2
    assert not any(pattern.endswith(".py") for patterns in asked for pattern in patterns)


def test_a_revision_of_a_path_is_refused(tmp_path, capsys):
    folder = write_folder(tmp_path / "folder")
    (problem,) = refusal(capsys, tmp_path, folder, "--revision", "main")
    assert problem == f"{folder} is a path: --revision is for ids on the hub"


@pytest.mark.parametrize("terminal", [True, False])
def test_bars_are_for_terminals(tmp_path, monkeypatch, terminal):
    shown = []
    folder = write_folder(tmp_path / COMMIT)

    def download(*arguments, tqdm_class, **options):
        with tqdm_class(total=2, disable=False, file=io.StringIO()) as bar:
            shown.append(not bar.disable)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    # Those of others in this process are their own business; transformers turns them off.
    before = huggingface_hub.utils.are_progress_bars_disabled()
    huggingface_hub.utils.enable_progress_bars()
    try:
        hub.fetch(ID)
        assert shown == [terminal]
        assert not huggingface_hub.utils.are_progress_bars_disabled()
    finally:
        if before:
            huggingface_hub.utils.disable_progress_bars()


# --- the library's own download, from this machine ------------------------------------------------


@pytest.fixture
def served(tmp_path):
    """The command in a process of its own, online, with a hub on the loopback; what is asked."""
    files = write_folder(tmp_path / "files")
    (files / "modeling_videomae.py").write_text("raise SystemExit('run')")
    (files / "pytorch_model.bin").write_bytes(b"anything")
    with serve(files, ID) as (address, asked):

        def command(*arguments):
            return subprocess.run(
                [sys.executable, "-m", "convert", *map(str, arguments)],
                cwd=ROOT,
                env=os.environ
                | {
                    "HF_ENDPOINT": address,
                    "HF_HOME": str(tmp_path / "home"),
                    "HF_HUB_CACHE": str(tmp_path / "hub"),
                    "HF_HUB_OFFLINE": "0",
                    "NO_PROXY": "127.0.0.1",
                },
                check=False,
                capture_output=True,
                text=True,
            )

        yield command, asked, files


def files_asked(asked):
    return {Path(path).name for path in asked if f"{ID}/resolve/" in path}


def test_a_download_fetches_what_conversion_reads(served, tmp_path):
    command, asked, _ = served
    done = command(ID, tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert files_asked(asked) == {"config.json", "model.safetensors"}
    source = json.loads((tmp_path / "out" / "conversion.json").read_text())["source"]
    assert source["hub"] == {"id": ID, "revision": COMMIT}


def test_a_download_of_bin_files_where_there_is_nothing_else(served):
    command, asked, files = served
    (files / "model.safetensors").unlink()
    done = command(ID)
    # It is no torch file, which is for the reader of those to say.
    assert done.returncode == 2
    assert "pytorch_model.bin: " in done.stderr
    assert files_asked(asked) == {"config.json", "pytorch_model.bin"}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["org/gone"], "doesn't exist, or is private"),
        (["org/private"], "doesn't exist, or is private"),
        (["org/gated"], "asks for permission"),
        (["org/broken"], "is out of reach, and not whole in the cache"),
        ([ID, "--revision", "v9"], "has no revision v9"),
        (["org/na--me"], "can't be: it is no valid id"),
    ],
)
def test_what_a_hub_refuses_is_one_line(served, arguments, text):
    done = served[0](*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        f"convert: error: {arguments[0]}: no path here, and on the hub it {text}"
    )
