import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomae_jax.kernels.batch_parallel import batch_parallel

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def on_four_devices():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    command = [sys.executable, "-m", "tests.four_devices"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("partitioner", ["shardy", "gspmd", "tpu"])
@pytest.mark.parametrize(
    ("case", "spec"),
    [
        ("batch", ["data"]),
        ("only left", ["data"]),
        ("two mesh axes", ["('data', 'model')"]),
        ("scan", ["data"]),
        ("gradient", ["data"]),
        ("vmap, batch sharded", ["data"]),
        ("vmap, mapped axis sharded", ["data"]),
        ("vmap of the gradient", ["data"]),
    ],
)
def test_a_sharded_batch_stays_where_it_is(on_four_devices, partitioner, case, spec):
    found = on_four_devices[f"{partitioner}: {case}"]
    assert found["error"] < 1e-5
    assert found["spec"] == spec
    assert found["collectives"] == []


@pytest.mark.parametrize("partitioner", ["shardy", "gspmd"])
def test_other_axes_are_made_whole(on_four_devices, partitioner):
    found = on_four_devices[f"{partitioner}: columns"]
    assert found["error"] < 1e-5
    assert "data" in found["spec"]
    # It also shows that the search for collectives finds them.
    assert set(found["collectives"]) == {"all-gather"}


def test_on_tpu_the_batch_is_spread_over_all_axes(on_four_devices):
    found = on_four_devices["tpu: columns"]
    assert found["error"] < 1e-5
    assert found["spec"] == ["('data', 'model')"]


def test_one_device_runs_the_function_alone():
    array = jnp.ones((2, 3))
    text = jax.jit(batch_parallel(jnp.tanh)).lower(array).compile().as_text()
    plain = jax.jit(jnp.tanh).lower(array).compile().as_text()
    assert "custom-call" not in text
    assert text.count(" = ") == plain.count(" = ")


def test_vmap_repeats_what_is_not_mapped():
    generator = np.random.default_rng(0)
    left = generator.standard_normal((2, 3, 5), dtype=np.float32)
    right = generator.standard_normal((2, 7, 5, 4), dtype=np.float32)
    product = jax.vmap(batch_parallel(jnp.matmul), in_axes=(None, 1))(left, right)
    wanted = np.einsum("bij,bvjk->vbik", left, right)
    np.testing.assert_allclose(product, wanted, rtol=0, atol=1e-5)
