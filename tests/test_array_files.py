"""Arrays read straight from their files are those that Orbax reads."""

import json
import logging

import jax
import ml_dtypes
import numpy as np
import pytest

from tests.test_checkpoint import LIKE, PARAMS, directory
from videomae_jax import weights
from videomae_jax.array_files import ALIGNMENT, NotPlain, array_names, read_array
from videomae_jax.weights import load_params, save_params

__all__ = ["directory"]
ARRAY = "encoder.layers.attention.qkv.kernel"


@pytest.fixture
def orbax_calls(monkeypatch):
    """How often the weights were read by Orbax."""
    calls = []
    load = weights._load_orbax
    monkeypatch.setattr(
        weights, "_load_orbax", lambda *arguments: calls.append(arguments) or load(*arguments)
    )
    return calls


def equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert (left.dtype, left.sharding) == (right.dtype, right.sharding)
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
def test_the_same_as_orbax(tmp_path, orbax_calls, stored, wanted):
    save_params(tmp_path, jax.tree.map(lambda leaf: leaf.astype(stored), PARAMS))
    like = jax.tree.map(lambda leaf: leaf.update(dtype=wanted), LIKE)
    plain = load_params(tmp_path, like)
    assert not orbax_calls
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    equal(
        plain,
        weights._load_orbax(tmp_path, jax.tree.map(lambda leaf: leaf.update(sharding=here), like)),
    )


def test_nothing_is_copied_on_a_cpu(directory):
    folder = directory / "params" / "state" / ARRAY
    array = read_array(folder, PARAMS["encoder"]["layers"]["attention"]["qkv"]["kernel"].shape)
    assert array.ctypes.data % ALIGNMENT == 0
    assert jax.device_put(array).unsafe_buffer_pointer() == array.ctypes.data


def test_loaded_weights_can_be_donated(directory):
    params = load_params(directory, LIKE)
    step = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    jax.tree.map(
        lambda found, before: np.testing.assert_array_equal(found, before + 1),
        step(step(params)),
        jax.tree.map(lambda leaf: leaf + 1, PARAMS),
    )


def test_the_names_are_those_of_the_tree(directory):
    names = array_names(directory / "params" / "state")
    assert ARRAY in names
    assert len(names) == len(jax.tree.leaves(LIKE))
    with pytest.raises(NotPlain):
        array_names(directory / "nowhere")


@pytest.mark.parametrize(
    ("shape", "dtype"), [((3,), np.float32), ((2, 3, 5), ml_dtypes.bfloat16), ((4, 1), np.float16)]
)
def test_any_shape(tmp_path, shape, dtype):
    values = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    save_params(tmp_path, {"a": values})
    found = read_array(tmp_path / "params" / "state" / "a", shape)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, values)


def test_what_is_written_in_another_way_is_left_to_orbax(tmp_path, orbax_calls, caplog):
    from orbax.checkpoint import v1 as ocp

    caplog.set_level(logging.INFO, logger="videomae_jax")
    ocp.save(str(tmp_path / "params"), PARAMS)
    loaded = load_params(tmp_path, LIKE)
    assert len(orbax_calls) == 1
    assert any("read by Orbax" in message for message in caplog.messages)
    jax.tree.map(np.testing.assert_array_equal, loaded, PARAMS)


def shorten(file):
    file.write_bytes(file.read_bytes()[:-1])


def lengthen(file):
    file.write_bytes(file.read_bytes() + b"\0")


def move_the_chunk(file):
    content = file.read_bytes()
    file.write_bytes(content[:-20] + (8).to_bytes(8, "little") + content[-12:])


@pytest.mark.parametrize("damage", [shorten, lengthen, move_the_chunk, lambda f: f.unlink()])
def test_a_damaged_file_is_not_read(directory, damage):
    folder = directory / "params" / "state" / ARRAY
    (file,) = (path for path in (folder / "c").rglob("*") if path.is_file())
    damage(file)
    with pytest.raises(NotPlain, match=ARRAY):
        read_array(folder, PARAMS["encoder"]["layers"]["attention"]["qkv"]["kernel"].shape)


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [1]},
        {"data_type": "int32"},
        {"data_type": []},
        {"zarr_format": 2},
        {"codecs": [{"name": "bytes", "configuration": {"endian": "big"}}]},
        {"codecs": [{"name": "gzip", "configuration": {"level": 5}}]},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, 1, 1]}}},
        {"chunk_key_encoding": {"name": "v2"}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_another_layout_is_not_read(directory, changes):
    folder = directory / "params" / "state" / ARRAY
    shape = PARAMS["encoder"]["layers"]["attention"]["qkv"]["kernel"].shape
    described = json.loads((folder / "zarr.json").read_text())
    read_array(folder, shape)
    for content in (described | changes, [described], None):
        (folder / "zarr.json").write_text(json.dumps(content))
        with pytest.raises(NotPlain):
            read_array(folder, shape)
