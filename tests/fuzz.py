"""Damage to files, drawn from a seed, and the loop that feeds it to a reader.

Every case must be read or be refused in words: nothing else may be raised, warned of, written or
waited for, and memory stays within a bound. A case is known by the seed and its number alone.
"""

import contextlib
import copy
import faulthandler
import json
import random
import re
import resource
import shutil
import signal
import struct
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

EXTREMES = [
    0,
    1,
    127,
    2**15,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**53,
    2**63 - 1,
    2**63,
    2**64 - 1,
]
DTYPES = "F64 F32 F16 BF16 F8_E4M3 F8_E5M2 F4 I64 I32 I16 I8 U64 U8 BOOL C64 F31".split()
STRANGE = [
    None,
    True,
    False,
    0,
    -1,
    3,
    0.5,
    -0.0,
    1e308,
    float("inf"),
    float("nan"),
    2**31,
    2**53,
    2**63,
    2**64,
    10**30,
    10**400,
    "",
    "x",
    "a\nb",
    "\0",
    "\ud800",
    "\u2028",
    "é" * 1000,
    "../model.safetensors",
    "F64",
    [],
    [[]],
    [1, 2, 3],
    [2**40, 2**40],
    {},
    {"": {}},
    {"height": 5},
]
TWICE = "a key that is there twice"


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


def damage_bytes(content: bytes, draw: random.Random, *, within: range | None = None) -> bytes:
    """One change of any kind, at a place in `within` or anywhere."""
    within = within if within else range(max(len(content), 1))
    at, length = draw.choice(within), draw.choice([1, 1, 2, 4, 8, 30])
    head, tail = content[:at], content[at:]
    chosen = draw.randrange(9)
    if chosen == 0:
        return head
    if chosen == 1 and tail:
        return head + bytes([tail[0] ^ 1 << draw.randrange(8)]) + tail[1:]
    if chosen == 2:
        return head + draw.randbytes(length) + tail[length:]
    if chosen == 3:
        return head + draw.randbytes(length) + tail
    if chosen == 4:
        return head + tail[length:]
    if chosen == 5:
        return head + tail[:length] * 2 + tail[length:]
    if chosen == 6:
        return head + tail[length : 2 * length] + tail[:length] + tail[2 * length :]
    number = draw.choice(EXTREMES)
    if chosen == 7:
        width = draw.choice([2, 4, 8])
        number = (number % 256**width).to_bytes(width, draw.choice(["little", "big"]))
        return head + number + tail[width:]
    return head + re.sub(rb"\d+", str(number).encode(), tail, count=1)


def damage_json(content: Any, draw: random.Random) -> bytes:
    """JSON text with an entry changed, lost, moved or there twice."""
    content = copy.deepcopy(content)
    repeated = ""
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        node = draw.choice(list(_containers(content)))
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            continue
        key, other = draw.choice(keys), draw.choice(keys)
        chosen = draw.randrange(6)
        if chosen == 0:
            del node[key]
        elif chosen == 1:
            node[key], node[other] = copy.deepcopy(node[other]), node[key]
        elif chosen == 2 and isinstance(node, dict):
            node[str(draw.choice(STRANGE))[:100]] = node.pop(key)
        elif chosen == 3 and isinstance(node, dict):
            node[TWICE] = draw.choice([node[key], _strange(draw)])
            repeated = key
        else:
            node[key] = _strange(draw)
    text = json.dumps(content)
    return text.replace(json.dumps(TWICE), json.dumps(repeated)).encode()


def _strange(draw: random.Random) -> Any:
    return copy.deepcopy(draw.choice(STRANGE))


def _containers(content: Any) -> Iterator[Any]:
    if isinstance(content, (dict, list)):
        yield content
        for value in content.values() if isinstance(content, dict) else content:
            yield from _containers(value)


def damage_text(content: Any, draw: random.Random) -> bytes:
    """JSON of `content`, its meaning damaged, or its bytes, or both."""
    chosen = draw.randrange(4)
    text = json.dumps(content).encode() if chosen == 0 else damage_json(content, draw)
    return damage_bytes(text, draw) if chosen in (0, 1) else text


def damage_safetensors(content: bytes, draw: random.Random) -> bytes:
    """A safetensors file, damaged in what its header says or in its bytes, most in the header."""
    end = 8 + struct.unpack("<Q", content[:8])[0]
    chosen = draw.randrange(8)
    if chosen == 0:
        return damage_bytes(content, draw)
    if chosen == 1:
        return damage_bytes(content, draw, within=range(end))
    header, data = json.loads(content[8:end]), content[end:]
    text = damage_header(header, draw) if chosen < 6 else damage_text(header, draw)
    length = len(text) if draw.randrange(10) else draw.choice([*EXTREMES, len(text) + 1])
    if draw.randrange(8) == 0:
        data = draw.choice([data[:-1], data + b"\0", data * 2, b""])
    return struct.pack("<Q", length % 2**64) + text + data


def damage_header(header: Mapping[str, Any], draw: random.Random) -> bytes:
    """A safetensors header whose entries contradict each other, or the file."""
    header = copy.deepcopy(dict(header))
    names = [name for name in header if name != "__metadata__"]
    entry, other = (header[draw.choice(names)] for _ in range(2))
    chosen = draw.randrange(8)
    if chosen == 0:
        entry["dtype"] = draw.choice(DTYPES)
    elif chosen == 1:
        entry["data_offsets"] = other["data_offsets"]
    elif chosen == 2:
        entry["data_offsets"], other["data_offsets"] = other["data_offsets"], entry["data_offsets"]
    elif chosen == 3:
        side = draw.randrange(2)
        entry["data_offsets"][side] += draw.choice([-4, -1, 1, 4, 2**40, 2**63, -(2**63)])
    elif chosen == 4:
        entry["shape"] = [draw.choice(EXTREMES) for _ in range(draw.randrange(5))]
    elif chosen == 5:
        entry["shape"] = [*entry["shape"], *draw.choice([[1], [1] * 40, [0], [1] * 200])]
    elif chosen == 6:
        entry["shape"] = [0, *entry["shape"]]
        entry["data_offsets"] = [entry["data_offsets"][0]] * 2
    else:
        header[TWICE] = draw.choice([entry, other])
    repeated = json.dumps(draw.choice(names))
    return json.dumps(header).replace(json.dumps(TWICE), repeated).encode()


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
