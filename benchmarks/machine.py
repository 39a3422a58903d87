"""What a benchmark ran on: processor, libraries, command; ready for JSON. Imports nothing heavy."""

import importlib.metadata
import os
import platform
import shlex
import sys
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


def _load() -> float | None:
    """Processes that wanted a core, on average over the last minute."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
