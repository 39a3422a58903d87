"""Ids on the hub, against a local stand-in of its cache: what is found, and what is said if not."""

import json
import types
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import errors

import videomae_jax as vm
from convert import hub
from convert.errors import ConversionError
from tests.folders import refusal, run, write_folder
from tests.hub_cache import COMMIT, write_repository

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
        f"https://huggingface.co/{ID}/tree/{revision} into a folder and give that"
    )


def test_what_is_not_cached_offline_says_what_to_download(cache, tmp_path, capsys):
    cache.mkdir()
    (problem,) = refusal(capsys, tmp_path, ID, tmp_path / "out")
    assert problem == (
        f"{ID}: no path here, and on the hub it is out of reach, and not in the cache here"
        f"{by_hand()}"
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

        def download(repo_id, *, revision, allow_patterns):
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
