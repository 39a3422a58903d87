import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sharded_model import BACKENDS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def on_four_devices():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    command = [sys.executable, "-m", "tests.sharded_model"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("backend", [str(backend) for backend in BACKENDS])
def test_chips_share_a_batch_under_plain_jit(on_four_devices, backend):
    forward, gradient = (on_four_devices[backend][name] for name in ("forward", "gradient"))
    assert forward["error"] < 2e-6
    assert gradient["error"] < 1e-5
    assert forward["collectives"] == []
    # The gradients of all clips are summed, and nothing else goes from chip to chip.
    assert gradient["collectives"] == ["all-reduce"]
