"""From frames on the canvas to the clips that a training step computes, all on the device."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Float32, Int, Key, UInt8

from videomae_jax.config import VideoMAEConfig
from videomae_jax.kernels.batch_parallel import batch_parallel
from videomae_jax.training.crops import centre_box, cut, multi_scale_box, on_canvas, resized_box
from videomae_jax.training.erasing import erase
from videomae_jax.training.randaugment import parse_policy, randaugment
from videomae_jax.training.settings import Augment

CROPS = ("resized", "multi_scale", "centre")


def augment(
    key: Array,
    frames: UInt8[Array, "B T h w C"],
    sizes: Int[Array, "B 2"],
    *,
    settings: Augment,
    model: VideoMAEConfig,
    mean: Sequence[float],
    std: Sequence[float],
) -> Float32[Array, "B T H W C"]:
    """Normalised clips of the model's size, each changed at random, all its frames alike.

    RandAugment on the canvas, crop, flip, normalised as (value / 255 - mean) / std, erased. The
    same `key` gives the same clips, however the batch is sharded; a clip's randomness depends on
    the key and its place in the batch. With nothing random switched on ("centre") it is what
    validation sees. Mixing is `mixing.mix`'s, since it needs the targets.

    frames: of any height and width, all squeezed to the same: the canvas.
    sizes: height and width of each video before it was squeezed. Boxes are chosen, and angles
        measured, in these. "multi_scale" is antialiased, as Pillow's resize was in pre-training,
        "resized" and "centre" are not; a canvas not much larger than the model makes them alike.
    mean, std: one number per colour.

    Raises:
        ValueError: for an unknown crop or policy, RandAugment of other than three colours, or
            frames that don't fit the model or `mean` and `std`.
    """
    _check(frames, settings, model, mean, std)
    keys = jax.random.split(key, frames.shape[0])
    changes, places, sides, holes = jax.vmap(lambda key: jax.random.split(key, 4), out_axes=1)(keys)
    clips = frames.transpose(0, 2, 3, 1, 4)
    if settings.randaugment:
        clips = _randaugmented(changes, clips, sizes, text=settings.randaugment)

    shape, canvas = model.image_size, (frames.shape[2], frames.shape[3])
    box = functools.partial(_box, settings=settings, shape=shape, canvas=canvas)
    mirrored = jax.vmap(lambda key: jax.random.bernoulli(key, settings.flip))(sides)
    antialias = settings.crop == "multi_scale"
    clips = _each(functools.partial(_cut, shape=shape, antialias=antialias))(
        clips, jax.vmap(box)(places, sizes), mirrored
    )
    # Normalising what was cut is cutting what was normalised: the weights of a pixel sum to 1.
    clips = (clips / 255 - jnp.array(mean)) / jnp.array(std)
    return _erased(holes, clips, probability=settings.erase) if settings.erase else clips


def _each(function: Callable[..., Array]) -> Callable[..., Array]:
    """A function of one clip, over the batch.

    One clip after the other on a CPU, whose caches hold one; at once elsewhere.
    """
    vectorised = jax.vmap(function)
    looped = _one_by_one(function)
    return lambda *arrays: jax.lax.platform_dependent(*arrays, cpu=looped, default=vectorised)


def _one_by_one(function: Callable[..., Array]) -> Callable[..., Array]:
    """A function of one clip in a loop over the batch, or over each device's share of it."""
    return batch_parallel(lambda *arrays: jax.lax.map(lambda clip: function(*clip), arrays))


def _randaugmented(
    keys: Key[Array, "B"], clips: UInt8[Array, "B h w T C"], sizes: Int[Array, "B 2"], *, text: str
) -> UInt8[Array, "B h w T C"]:
    policy, kind = parse_policy(text), jax.random.key_impl(keys)
    squeezed = sizes / jnp.array(clips.shape[1:3])

    def change(data: Array, clip: Array, stretch: Array) -> Array:
        key = jax.random.wrap_key_data(data, impl=kind)
        return randaugment(key, clip, policy=policy, stretch=stretch)

    # A loop on every platform: at once, all fifteen operations would be computed for every clip.
    return _one_by_one(change)(jax.random.key_data(keys), clips, squeezed[:, 0] / squeezed[:, 1])


def _erased(
    keys: Key[Array, "B"], clips: Float32[Array, "B T H W C"], *, probability: float
) -> Float32[Array, "B T H W C"]:
    kind = jax.random.key_impl(keys)

    def change(data: Array, clip: Array) -> Array:
        return erase(jax.random.wrap_key_data(data, impl=kind), clip, probability=probability)

    return _each(change)(jax.random.key_data(keys), clips)


def _cut(
    clip: UInt8[Array, "h w T C"],
    box: Float[Array, "4"],
    mirrored: Bool[Array, ""],
    *,
    shape: tuple[int, int],
    antialias: bool,
) -> Float32[Array, "T H W C"]:
    values = cut(clip, box, shape=shape, antialias=antialias, mirrored=mirrored)
    return values.transpose(2, 0, 1, 3)


def _box(
    key: Key[Array, ""],
    size: Int[Array, "2"],
    *,
    settings: Augment,
    shape: tuple[int, int],
    canvas: tuple[int, int],
) -> Float[Array, "4"]:
    """What is cut, in pixels of the canvas."""
    if settings.crop == "resized":
        box = resized_box(key, size, area=settings.crop_area, aspect=settings.crop_aspect)
    elif settings.crop == "multi_scale":
        box = multi_scale_box(key, size, shape=shape)
    else:
        box = centre_box(size, shape=shape)
    return on_canvas(box, size, canvas)


def _check(
    frames: Array,
    settings: Augment,
    model: VideoMAEConfig,
    mean: Sequence[float],
    std: Sequence[float],
) -> None:
    length, _, _, colours = model.clip_shape
    if frames.shape[1] != length or frames.shape[-1] != colours:
        raise ValueError(
            f"frames must be [B, T, h, w, C] = [B, {length}, h, w, {colours}], "
            f"got {list(frames.shape)}"
        )
    if not len(mean) == len(std) == colours:
        raise ValueError(
            f"mean and std must have {colours} numbers each, got {len(mean)} and {len(std)}"
        )
    if settings.crop not in CROPS:
        raise ValueError(f"crop must be one of {', '.join(CROPS)}, got {settings.crop!r}")
    if settings.randaugment and parse_policy(settings.randaugment) and colours != 3:
        raise ValueError(f"randaugment needs 3 colours, the model has {colours}")
