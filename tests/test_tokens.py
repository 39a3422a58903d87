import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.configs import TINY, random_clips
from videomae_jax.tokens import (
    _project_by_convolution,
    clips_from_tubelets,
    project_tubelets,
    sinusoid_table,
    tubelets,
)

WIDE = dataclasses.replace(TINY, patch_size=(3, 5), tubelet_size=3, num_channels=2)


@pytest.mark.parametrize("config", [TINY, WIDE])
def test_each_tubelet_is_the_box_it_stands_for(config):
    import jax.numpy as jnp

    clips = random_clips(config)
    tokens = np.asarray(tubelets(jnp.asarray(clips), config))
    assert tokens.shape == (2, config.num_tokens, config.tubelet_pixels)
    depth, (height, width) = config.tubelet_size, config.patch_size
    index = 0
    for t in range(config.grid[0]):
        for h in range(config.grid[1]):
            for w in range(config.grid[2]):
                box = clips[
                    :,
                    t * depth : (t + 1) * depth,
                    h * height : (h + 1) * height,
                    w * width : (w + 1) * width,
                ]
                np.testing.assert_array_equal(tokens[:, index], box.reshape(2, -1))
                index += 1
    assert index == config.num_tokens


@pytest.mark.parametrize("config", [TINY, WIDE])
def test_tubelets_can_be_put_back(config):
    import jax.numpy as jnp

    clips = jnp.asarray(random_clips(config))
    np.testing.assert_array_equal(clips_from_tubelets(tubelets(clips, config), config), clips)


def test_positions_follow_the_formula():
    table = sinusoid_table(45, 24)
    assert table.shape == (45, 24)
    assert table.dtype == np.float32
    for position in (0, 1, 17, 44):
        for column in (0, 1, 2, 11, 23):
            angle = position / 10000.0 ** (2 * (column // 2) / 24)
            wanted = np.cos(angle) if column % 2 else np.sin(angle)
            assert table[position, column] == np.float32(wanted)


def test_the_shared_position_table_can_not_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        sinusoid_table(45, 24)[0, 0] = 1.0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_form_for_tpus_is_the_same_projection(dtype):
    generator = np.random.default_rng(0)
    clips = jnp.asarray(random_clips(TINY), dtype)
    shape = (TINY.tubelet_pixels, TINY.hidden_size)
    kernel = jnp.asarray(generator.standard_normal(shape, dtype=np.float32), dtype)
    given = _project_by_convolution(clips, kernel, config=TINY)
    wanted = np.asarray(tubelets(clips, TINY), np.float64) @ np.asarray(kernel, np.float64)
    assert given.dtype == jnp.float32
    np.testing.assert_allclose(given, wanted, rtol=0, atol=2e-5)
    np.testing.assert_allclose(
        project_tubelets(clips, kernel, TINY, np.dtype(kernel.dtype)), wanted, rtol=0, atol=2e-5
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_of_the_projection(dtype):
    generator = np.random.default_rng(0)
    clips = jnp.asarray(random_clips(TINY), dtype)
    shape = (TINY.tubelet_pixels, TINY.hidden_size)
    kernel = jnp.asarray(generator.standard_normal(shape, dtype=np.float32), dtype)

    def of_cut(clips, kernel):
        wide = clips.astype(jnp.float32), kernel.astype(jnp.float32)
        return jnp.sum((tubelets(wide[0], TINY) @ wide[1]) ** 2)

    def projected(clips, kernel):
        return jnp.sum(project_tubelets(clips, kernel, TINY, np.dtype(dtype)) ** 2)

    given = jax.grad(projected, (0, 1))(clips, kernel)
    wanted = jax.grad(of_cut, (0, 1))(clips, kernel)
    for one, other in zip(given, wanted, strict=True):
        assert one.dtype == jnp.dtype(dtype)
        error = np.linalg.norm(np.asarray(one - other, np.float64)) / np.linalg.norm(
            np.asarray(other, np.float64)
        )
        assert error < (1e-6 if dtype == "float32" else 1e-2)
