"""The loop that feeds damaged files, drawn from a seed, to a reader.

Every case must be read or be refused in words: nothing else may be raised, warned of, written or
waited for, and memory stays within a bound. A case is known by the seed and its number alone.
"""

import contextlib
import faulthandler
import random
import re
import resource
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from convert.errors import ConversionError
from tests.folders import listing, run

SEED = 20_220_323
COUNT = 2000
COMMANDS = 60
MOST_SECONDS = 20
MOST_GROWTH = 300 * 2**20
MOST_LINE = 11_000
# The file beside the folder that says which case is running: a crash leaves no other word.
CASE = "case"

# Draws the files of a case, {name: content}.
Draw = Callable[[random.Random], Mapping[str, bytes]]


class Hang(BaseException):
    """A case that took too long; no reader catches it."""


def run_cases(
    name: str,
    folder: Path,
    draw: Draw,
    read: Callable[[Path], None],
    *,
    count: int = COUNT,
    seed: int = SEED,
) -> Counter:
    """Feed `count` cases in `folder` to `read`; returns how many were "read" and "refused".

    `folder` keeps what else lies in it, and the files of the case that failed.
    """
    outcomes: Counter = Counter()
    with memory_bound():
        for number in range(count):
            case = f"{name}, case {number} of seed {seed}"
            (folder.parent / CASE).write_text(case)
            files = draw(random.Random(f"{name} {seed} {number}"))
            for file, content in files.items():
                (folder / file).write_bytes(content)
            before = listing(folder)
            try:
                with time_bound():
                    outcomes[outcome(read, folder)] += 1
            except (Exception, Hang) as error:
                raise AssertionError(f"{case}: {type(error).__name__}: {error}") from error
            assert listing(folder) == before, case
    assert sum(outcomes.values()) == count
    # Past the capture of a command's output.
    figures = dict(sorted(outcomes.items()))
    print(f"{name}: {count} cases of seed {seed}: {figures}", file=sys.__stdout__)
    return outcomes


def outcome(read: Callable[[Path], None], folder: Path) -> str:
    """Whether a reader takes the files, or refuses them in words, as it must otherwise."""
    try:
        read(folder)
    except ValueError as error:
        # Not what is derived from it otherwise, such as a codec's error over a damaged text.
        if type(error) not in (ValueError, ConversionError):
            raise
        problems = error.problems if isinstance(error, ConversionError) else (str(error),)
    else:
        return "read"
    assert problems
    for problem in problems:
        assert problem.strip()
        assert problem.isprintable(), ascii(problem)
        assert len(problem) < MOST_LINE
    return "refused"


@contextlib.contextmanager
def time_bound() -> Iterator[None]:
    def expire(number, frame):
        raise Hang(f"more than {MOST_SECONDS} seconds")

    previous = signal.signal(signal.SIGALRM, expire)
    signal.alarm(MOST_SECONDS)
    # A loop that never comes back to Python hears no signal.
    faulthandler.dump_traceback_later(3 * MOST_SECONDS, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


@contextlib.contextmanager
def memory_bound(most: int = MOST_GROWTH) -> Iterator[None]:
    """Fail if the peak of this process's memory grows by more."""
    # Linux forgets the peak of what ran before when told so.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    before = peak_bytes()
    yield
    assert peak_bytes() - before < most


def peak_bytes() -> int:
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if found is not None:
            return 1024 * int(found[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def command_reader(capsys: Any, source: str, *options: str) -> Callable[[Path], None]:
    """A reader that converts `source` in the folder by the whole command, for `run_cases`.

    The folder must have nothing beside it.
    """

    def read(folder: Path) -> None:
        out = folder.parent / "out"
        code = run(folder / source, out, *(option.format(folder=folder) for option in options))
        printed = capsys.readouterr()
        assert code in (0, 2)
        if code == 0:
            assert printed.err == ""
            assert (out / "config.json").is_file()
            shutil.rmtree(out)
        assert {path.name for path in folder.parent.iterdir()} == {folder.name, CASE}
        if code == 2:
            assert printed.out == ""
            prefix = "convert: error: "
            lines = printed.err.splitlines()
            assert all(line.startswith(prefix) for line in lines), printed.err
            raise ConversionError(*lines)

    return read
