"""What all commands do alike."""

import gc
import importlib.util
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from videomae_jax.__main__ import main
from videomae_jax.command import LOGGERS, log_on_stderr, run_quietly, seldom_collecting

ROOT = Path(__file__).parents[1]


def test_garbage_is_collected_as_ever_afterwards():
    before = gc.get_threshold()
    during = []
    assert run_quietly(lambda: during.append(gc.get_threshold()) or 0) == 0
    assert during[0][0] > before[0]
    assert gc.get_threshold() == before
    with pytest.raises(ZeroDivisionError), seldom_collecting():
        raise ZeroDivisionError
    assert gc.get_threshold() == before
    assert gc.isenabled()


def test_nothing_is_collected_at_exit():
    code = (
        "import atexit, gc\n"
        "from videomae_jax.command import run_quietly\n"
        "atexit.register(lambda: print(gc.get_freeze_count() > 1000))\n"
        "run_quietly(lambda: print(gc.get_freeze_count()) or 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.split() == ["0", "True"]


def test_ctrl_c_ends_without_a_word(capsys):
    def run():
        raise KeyboardInterrupt

    assert run_quietly(run) == 130
    assert capsys.readouterr() == ("", "")


def test_a_line_is_shown_once_though_a_library_logs_on_the_root(capsys):
    propagates = [logging.getLogger(name).propagate for name in LOGGERS]
    # What absl does as soon as Orbax logs anything.
    root = logging.StreamHandler(sys.stderr)
    logging.getLogger().addHandler(root)
    try:
        with log_on_stderr("videomae"):
            logging.getLogger("videomae_jax.training.start").info("encoder taken")
            logging.getLogger("videomae_jax.video").info("of no interest")
            logging.getLogger("videomae_jax.video").warning("mind this")
    finally:
        logging.getLogger().removeHandler(root)
    assert capsys.readouterr().err.splitlines() == [
        "videomae: encoder taken",
        "videomae: warning: mind this",
    ]
    assert [logging.getLogger(name).propagate for name in LOGGERS] == propagates


@pytest.mark.parametrize(
    ("package", "words"),
    [
        ("grain", "pretrain --recipe tiny-pretrain --data x --workdir y"),
        ("tyro", "finetune --recipe tiny-finetune --data x --workdir y"),
        ("optax", "probe --data x --workdir y --no-compile-cache"),
        ("array_record", "pack y --data x"),
    ],
)
def test_what_is_not_installed_is_one_line(package, words, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == package else find(name)
    )
    assert main(words.split()) == 2
    expected = f"videomae: error: {package} is not installed; pip install 'videomae-jax[train]'\n"
    assert capsys.readouterr().err == expected
