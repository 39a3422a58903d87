import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from convert.__main__ import main as convert
from tests.folders import write_folder
from tests.sharded_params import CONFIG
from tpu import job
from videomae_jax import sharding
from videomae_jax.config import VARIANTS
from videomae_jax.model import VideoClassifier, VideoPretrainer, abstract_params
from videomae_jax.sharding import clip_sharding, mesh_of, param_shardings

ROOT = Path(__file__).parents[1]
D, F, LAYERS = CONFIG.hidden_size, CONFIG.intermediate_size, CONFIG.num_hidden_layers


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_folder(folder / "source", config=CONFIG)
    assert convert([str(folder / "source"), str(folder / "out")]) == 0
    done = subprocess.run(
        [sys.executable, "-m", "tests.sharded_params", str(folder / "out")],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def whole_and_cut(config, way):
    """Parameters that each device holds all of, and those that are cut, by the table."""
    mesh = mesh_of()
    params = abstract_params(VideoClassifier(config))
    places = param_shardings(params, mesh, sharding=way)
    sizes = zip(jax.tree.leaves(params), jax.tree.leaves(places), strict=True)
    cut = whole = 0
    for leaf, place in sizes:
        if "model" in place.spec:
            cut += leaf.size
        else:
            whole += leaf.size
    return whole, cut


@pytest.mark.parametrize("way", ["replicated 1", "fsdp 2", "fsdp 4", "tensor 2", "tensor 4"])
def test_logits_are_those_of_one_device(four, way):
    assert four[way]["error"] < 2e-6


@pytest.mark.parametrize("way", ["replicated 1", "fsdp 2", "fsdp 4", "tensor 2", "tensor 4"])
def test_each_device_holds_its_part(four, way):
    name, size = way.split()
    whole, cut = whole_and_cut(CONFIG, name)
    assert four[way]["held"] == pytest.approx((whole + cut / int(size)) / (whole + cut))


def test_the_batch_is_spread_over_the_devices(four):
    assert [four[f"fsdp {size}"]["clips"] for size in (2, 4)] == [[2] * 4, [2] * 4]
    assert four["replicated 1"]["clips"] == [2] * 4
    assert four["tensor 2"]["clips"] == [4] * 4
    assert four["tensor 4"]["clips"] == [8] * 4


def test_copies_exchange_nothing(four):
    assert four["replicated 1"]["exchanged"] == []


@pytest.mark.parametrize("size", [2, 4])
def test_fsdp_gathers_weights_and_no_activations(four, size):
    layer = [[D, 3 * D], [D, D], [D, F], [F, D]]
    # One layer's at a time: no stack of all of them.
    other = [[D, CONFIG.num_labels], [CONFIG.tubelet_pixels, D]]
    exchanged = four[f"fsdp {size}"]["exchanged"]
    assert {kind for kind, _ in exchanged} == {"all-gather"}
    assert sorted(shape for _, shape in exchanged) == sorted(layer + other)


@pytest.mark.parametrize("size", [2, 4])
def test_tensor_exchanges_one_sum_a_layer(four, size):
    ((kind, shape),) = four[f"tensor {size}"]["exchanged"]
    assert (kind, shape) == ("all-reduce", [2 * size, CONFIG.num_tokens, D])


@pytest.mark.parametrize(("way", "most"), [("fsdp", 0.002), ("tensor", 0.35)])
def test_how_much_of_giant_is_whole(way, most):
    whole, cut = whole_and_cut(dataclasses.replace(VARIANTS["giant"], num_labels=710), way)
    assert whole / (whole + cut) < most


def test_every_row_of_the_table_is_of_some_parameter():
    config = VARIANTS["small"]
    names = set()
    for model in (VideoClassifier, VideoPretrainer):
        tree = abstract_params(model(dataclasses.replace(config, num_labels=3)))
        for path, _ in jax.tree_util.tree_leaves_with_path(tree):
            names.add("/".join(key.key for key in path))
    for table in sharding.CUT_AXES.values():
        for end in table:
            assert any(name.endswith(end) for name in names), end


def test_a_side_that_is_not_divided_stays_whole(caplog):
    caplog.set_level("INFO")
    spec = sharding._spec("classifier/kernel", (30, 7), 4, "fsdp")
    assert tuple(spec) == ()
    assert "classifier/kernel [30, 7] is whole on each device" in caplog.text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sharding": "zero"}, "one of replicated, fsdp, tensor, got 'zero'"),
        ({"sharding": "fsdp", "model_axis": 3}, "a model axis of 3 does not divide 4 devices"),
        ({"sharding": "fsdp", "model_axis": 0}, "a model axis of 0"),
        ({"model_axis": 2}, "'replicated' has a model axis of 1, got 2"),
    ],
)
def test_meshes_that_can_not_be(options, words):
    with pytest.raises(ValueError, match=r"sharding|axis") as error:
        mesh_of(["a", "b", "c", "d"], **options)
    assert words in str(error.value)


def test_the_batch_job_knows_the_same_ways():
    assert job.SHARDINGS == sharding.SHARDINGS
    assert clip_sharding(mesh_of()).spec[0] == ("data", "model")
