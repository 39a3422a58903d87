"""What all commands do alike."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from videomae_jax.command import run_quietly, seldom_collecting

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
