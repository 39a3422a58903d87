import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NO_LIBTPU = importlib.util.find_spec("libtpu") is None
GIGABYTES = {"v4:2x2x1": 32, "v5e:2x2": 16, "v5p:2x2x1": 95, "v6e:2x2": 32}


@pytest.mark.tpu
@pytest.mark.skipif(NO_LIBTPU, reason="needs libtpu, the TPU compiler: pip install libtpu")
@pytest.mark.parametrize("topology", GIGABYTES)
def test_short_attention_compiles(topology):
    # libtpu lets one process in at a time unless told otherwise, and reads that when it is loaded.
    own = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    command = [sys.executable, "-m", "tests.tpu_compile", topology]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | own, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    programs = json.loads(done.stdout)
    assert programs
    problems = [
        f"{name}: {problem}" for name, found in programs.items() for problem in faults(name, found)
    ]
    needed = max(
        found.get("arguments", 0) + found.get("temporary", 0) for found in programs.values()
    )
    assert needed < GIGABYTES[topology] * 2**30
    assert not problems, "\n".join(problems)


def faults(name: str, found: dict):
    """What is wrong with one program: it must move its arrays once and talk to no other chip."""
    if "error" in found:
        yield found["error"]
        return
    collectives = found["collectives"]
    if name.startswith("gradient"):
        # The sum over all clips that the test differentiates.
        collectives = [kind for kind in collectives if kind != "all-reduce"]
    if collectives:
        yield f"holds {collectives}"
    if name.startswith("forward") and "bfloat16" in name and "1568" in name:
        if found["temporary"] > 2**20:
            yield f"copies {found['temporary']} bytes"
        # What goes in is packed queries, keys and values, what comes out as wide as one of them.
        if found["moved"] > 1.4 * found["arguments"]:
            yield f"moves {found['moved']} bytes"


def test_a_fault_is_found():
    good = {"arguments": 3000, "temporary": 0, "moved": 4000, "collectives": []}
    name = "forward 6x64 1568 bfloat16 on 4"
    assert not list(faults(name, good))
    assert list(faults(name, good | {"collectives": ["all-gather"]}))
    assert list(faults(name, good | {"temporary": 2**21}))
    assert list(faults(name, good | {"moved": 5000}))
    assert list(faults(name, {"error": "out of memory"}))
    assert list(faults("gradient", good | {"collectives": ["all-gather", "all-reduce"]}))
