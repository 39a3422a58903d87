"""The README's commands and snippets, run as printed, in a folder as a reader would have it."""

import functools
import importlib.util
import re
import shlex
from pathlib import Path

import huggingface_hub
import pytest
from transformers import VideoMAEImageProcessorPil

import convert.__main__
import tpu.__main__
import videomae_jax.__main__
from examples.quickstart.clip import make_clip
from tests.hub_cache import write_repository
from tests.parity import reference
from videomae_jax.commands.training_options import recipe_of
from videomae_jax.labels import Labels
from videomae_jax.model import VideoClassifier

README = Path(__file__).parents[2] / "README.md"
PYPROJECT = README.with_name("pyproject.toml")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """Every command of the README, in words."""
    lines = "".join(blocks("console")).replace("\\\n", " ").splitlines()
    return [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]


def run(words: list[str]) -> str | None:
    """Run a command, or where that takes hours see that it would; returns which it was."""
    match words:
        case ["python", "-m", "convert", *rest]:
            assert convert.__main__.main(rest) == 0
            return "convert"
        case ["videomae", "classify", *rest]:
            assert videomae_jax.__main__.main(["classify", *rest]) == 0
            return "classify"
        case ["videomae", "pretrain" | "finetune" as task, *rest]:
            recipe_of(videomae_jax.__main__.parse([task, *rest]), task)
            return task
        case ["videomae", name, *rest]:
            videomae_jax.__main__.parse([name, *rest])
            return name
        case ["python", "-m", "tpu", name, *rest]:
            # aot compiles for a minute: tests/test_tpu_aot.py does that for a tiny model.
            tpu.__main__.parse([name, *rest])
            return f"tpu {name}"
        case ["python", "-m", module, *_]:
            assert importlib.util.find_spec(module)
        case ["pip", "install", wanted]:
            assert re.search(rf"^{wanted[2:-1].split(',')[0]} = ", PYPROJECT.read_text(), re.M)
        case _:
            assert words[0] == "make"
            assert re.search(rf"^{words[1]}:", (README.parent / "Makefile").read_text(), re.M)
    return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Hugging Face folder of the small model's sizes but for its depth, and a clip."""
    folder = tmp_path_factory.mktemp("reader")
    source = folder / "files"
    labels = Labels.numbered(400).names
    model = reference.build(
        VideoClassifier,
        hidden_size=384,
        num_hidden_layers=2,
        num_attention_heads=16,
        intermediate_size=1536,
        id2label=dict(enumerate(labels)),
        label2id={name: index for index, name in enumerate(labels)},
    )
    model.save_pretrained(source)
    VideoMAEImageProcessorPil().save_pretrained(source)
    make_clip(folder / "archery.mp4")
    write_repository(folder / "hub", "MCG-NJU/videomae-small-finetuned-kinetics", source)
    return folder


def test_the_commands_and_then_the_snippets_run(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    download = functools.partial(huggingface_hub.snapshot_download, cache_dir=folder / "hub")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    ran = [kind for command in commands() if (kind := run(command))]
    assert ran[:4] == ["convert", "classify", "convert", "convert"]
    assert {"finetune", "evaluate", "pack", "tpu aot", "tpu run"} <= set(ran)
    assert "agrees with transformers" in capsys.readouterr().out

    snippets = blocks("python")
    assert "vm.load(" in snippets[0]
    scope = {}
    for snippet in snippets:
        exec(compile(snippet, str(README), "exec"), scope)
    assert (scope["frames"].dtype, scope["frames"].shape) == ("uint8", (16, 240, 320, 3))
    assert (scope["clip"].dtype, scope["clip"].shape) == ("float32", (1, 16, 224, 224, 3))
    assert (scope["pixels"].dtype, scope["pixels"].shape) == ("uint8", (1, 16, 224, 224, 3))
    assert (scope["logits"].dtype, scope["logits"].shape) == ("float32", (1, 400))
    assert scope["states"].shape == (3, 1, 1568, 384)
    assert scope["maps"].shape == (2, 1, 16, 1568, 1568)
    assert scope["predictions"].shape == (1, 1408, 1536)
    assert len(capsys.readouterr().out.splitlines()) == 5
