"""What a benchmark ran on: processor, libraries, command; ready for JSON. Imports nothing heavy."""

import importlib.metadata
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

# Instruction sets that decide how fast a product of matrices can be.
INSTRUCTION_SETS = frozenset(
    """
    avx2 fma avx_vnni avx512f avx512_bf16 avx512_fp16 avx512_vnni amx_tile amx_bf16 amx_int8
    asimd asimddp bf16 i8mm sve sve2
    """.split()
)


def describe(packages: Iterable[str], *, accelerators: Sequence[str] = ()) -> dict[str, Any]:
    """`machine`, `versions` of Python and of those `packages` that are installed, `command`.

    `accelerators` are the names of the devices that were used beside the processor. What the system
    doesn't tell is None. `load_before` is how busy the machine was: figures want it near 0.
    """
    return {
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "processor": _field("model name") or platform.processor() or None,
            "cores": usable_cores(),
            "instruction_sets": instruction_sets(),
            "memory_bytes": _memory_bytes(),
            "load_before": _load(),
            "accelerators": list(accelerators),
        },
        "versions": {"python": platform.python_version()} | _installed(packages),
        "command": command(),
    }


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Neighbours:
    """How much of the processor other processes took while this was in use (`with`).

    `share` is that, 0 to 1 of all cores; None where the system doesn't tell. A neighbour on one of
    two cores makes torch 3 times slower, as its threads wait for each other, and XLA 2 times: a
    ratio measured beside one says nothing.
    """

    share: float | None = None

    def __enter__(self) -> "Neighbours":
        self._start = (_busy_seconds(), time.process_time(), time.perf_counter())
        return self

    def __exit__(self, *_: object) -> None:
        busy, own, wall = self._start
        now = _busy_seconds()
        if busy is not None and now is not None:
            others = (now - busy) - (time.process_time() - own)
            cores = os.cpu_count() or 1
            self.share = max(0.0, others / (time.perf_counter() - wall) / cores)


def instruction_sets() -> list[str]:
    """Those of `INSTRUCTION_SETS` that the processor has; none where the system doesn't tell."""
    # Linux says "flags" on x86 and "Features" on ARM.
    found = (_field("flags") or _field("Features") or "").split()
    return sorted(INSTRUCTION_SETS.intersection(found))


def command() -> str:
    """The command line of this process, the interpreter's path left out."""
    options = sys.orig_argv[1:]
    return shlex.join(["python", *options])


def in_words(description: dict[str, Any]) -> str:
    """What `describe` found, in two lines for a terminal."""
    machine, versions = description["machine"], description["versions"]
    parts = [
        machine["processor"] or machine["system"],
        f"{machine['cores']} cores",
        *machine["accelerators"],
        " ".join(machine["instruction_sets"]),
        f"load before: {machine['load_before']}",
    ]
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{', '.join(part for part in parts if part)}\n{packages}"


def _installed(packages: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _field(name: str) -> str | None:
    """The first value of a field in Linux's /proc/cpuinfo."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    values = (line.split(":", 1)[1].strip() for line in lines if line.split(":")[0].strip() == name)
    return next(values, None)


def _busy_seconds() -> float | None:
    """Seconds of work of all cores since the system started, in steps of some 10 ms."""
    try:
        text = Path("/proc/stat").read_text(encoding="utf-8")
        return busy_ticks(text) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return None


def busy_ticks(stat: str) -> int:
    """Ticks of work of all cores in the contents of Linux's /proc/stat."""
    # cpu, user, nice, system, idle, iowait, irq, softirq, steal; guests are counted in user.
    user, nice, system, _, _, *rest = map(int, stat.split("\n", 1)[0].split()[1:9])
    return user + nice + system + sum(rest)


def _load() -> float | None:
    """Processes that wanted a core, on average over the last minute."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
