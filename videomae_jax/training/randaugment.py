"""RandAugment: a few random operations on a clip, one after the other, all frames alike.

The "increasing" set of timm's `auto_augment`, whose policies are written such as
"rand-m7-n4-mstd0.5-inc1"; https://arxiv.org/abs/1909.13719. Each of the n operations is drawn from
all fifteen, is left out in half of the cases, and has a strength of its own.
"""

import dataclasses
import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, UInt8

from videomae_jax.training import colour_operations, warping

MOST = 10.0
FORM = "rand-m7-n4-mstd0.5-inc1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
    """What a policy's text says.

    magnitude: mean of an operation's strength, of 0 to 10; deviation: its standard deviation.
    count: operations a clip. probability: that a drawn one is carried out.
    """

    magnitude: float = MOST
    count: int = 2
    deviation: float = 0.0
    probability: float = 0.5


@dataclasses.dataclass(frozen=True)
class Operation:
    """change(clip, amount, stretch) with amount(level, sign): level 0 to 10, sign 1 or -1."""

    amount: Callable[[Array, Array], Array]
    change: Callable[[Array, Array, Array], Array]


def parse_policy(text: str) -> Policy:
    """The policy that a text such as "rand-m7-n4-mstd0.5-inc1" means, parts in any order.

    m: magnitude, 10 if not said; n: operations, 2; mstd: deviation of the magnitude, 0;
    p: probability, 0.5; inc1: the increasing set, the only one there is.

    Raises:
        ValueError: for a part that is unknown, repeated or out of range, naming it.
    """
    name, *parts = text.split("-")
    if name != "rand":
        raise ValueError(f"randaugment must read like {FORM!r}, got {text!r}")
    said: dict[str, float] = {}
    for part in parts:
        match = re.fullmatch(r"(mstd|inc|m|n|p)(\d+(?:\.\d+)?)", part)
        if match is None or match[1] in said:
            reason = "unknown" if match is None else "repeated"
            raise ValueError(f"{reason} part {part!r} of randaugment {text!r}; known: {FORM!r}, p")
        said[match[1]] = float(match[2])
    if said.pop("inc", 0) != 1:
        raise ValueError(f"randaugment needs the increasing set, inc1, got {text!r}")
    policy = Policy(
        magnitude=said.get("m", MOST),
        count=int(said.get("n", 2)),
        deviation=said.get("mstd", 0.0),
        probability=said.get("p", 0.5),
    )
    if policy.magnitude > MOST or policy.probability > 1 or policy.count != said.get("n", 2):
        raise ValueError(f"randaugment wants m up to 10, p up to 1 and a whole n, got {text!r}")
    return policy


def randaugment(
    key: Array, clip: UInt8[Array, "h w T C"], *, policy: Policy, stretch: Float[Array, ""]
) -> UInt8[Array, "h w T C"]:
    """One clip, pixels first, changed as the policy says; see `warping` for `stretch`.

    Only the operations that were drawn are computed, so call it in a loop over clips:
    under `jax.vmap` all fifteen are.
    """

    def one(clip: Array, drawn: tuple[Array, Array, Array]) -> tuple[Array, None]:
        return apply(clip, *drawn, stretch=stretch), None

    return jax.lax.scan(one, clip, draw(key, policy=policy))[0]


def draw(
    key: Array, *, policy: Policy
) -> tuple[Int[Array, "n"], Float[Array, "n"], Float[Array, "n"]]:
    """(number in `OPERATIONS`, or their count for none; level; sign) of each operation of a clip.

    Levels are normally distributed and cut off at 0 and 10.
    """
    which, strength = jax.random.split(key)
    draws = jax.random.uniform(which, (3, policy.count))
    number = (draws[0] * len(OPERATIONS)).astype(jnp.int32)
    done = draws[1] < policy.probability
    sign = jnp.where(draws[2] < 0.5, 1.0, -1.0)
    level = policy.magnitude + policy.deviation * jax.random.normal(strength, (policy.count,))
    return jnp.where(done, number, len(OPERATIONS)), jnp.clip(level, 0, MOST), sign


def apply(
    clip: UInt8[Array, "h w T C"],
    number: Int[Array, ""],
    level: Float[Array, ""],
    sign: Float[Array, ""],
    *,
    stretch: Float[Array, ""],
) -> UInt8[Array, "h w T C"]:
    """The operation of a number, its order in `OPERATIONS`; past the last, the clip itself."""

    def branch(operation: Operation, clip: Array, level: Array, sign: Array, stretch: Array):
        return operation.change(clip, operation.amount(level, sign), stretch)

    branches = [functools.partial(branch, operation) for operation in OPERATIONS.values()]
    branches.append(lambda clip, *_: clip)
    return jax.lax.switch(number, branches, clip, level, sign, stretch)


def _whole(level: Array, most: int) -> Array:
    return (level / MOST * most).astype(jnp.int32)


def _signed(most: float) -> Callable[[Array, Array], Array]:
    return lambda level, sign: sign * level / MOST * most


def _without_amount(change: Callable[[Array], Array]) -> Operation:
    return Operation(lambda level, sign: level, lambda clip, amount, stretch: change(clip))


def _colours(
    change: Callable[[Array, Array], Array], amount: Callable[[Array, Array], Array]
) -> Operation:
    return Operation(amount, lambda clip, amount, stretch: change(clip, amount))


def _enhance(change: Callable[[Array, Array], Array]) -> Operation:
    return _colours(change, lambda level, sign: 1.0 + sign * level / MOST * 0.9)


OPERATIONS: dict[str, Operation] = {
    "AutoContrast": _without_amount(colour_operations.auto_contrast),
    "Equalize": _without_amount(colour_operations.equalize),
    "Invert": _without_amount(colour_operations.invert),
    "Rotate": Operation(_signed(30.0), warping.rotate),
    "PosterizeIncreasing": _colours(
        colour_operations.posterize, lambda level, sign: 4 - _whole(level, 4)
    ),
    "SolarizeIncreasing": _colours(
        colour_operations.solarize, lambda level, sign: 256 - _whole(level, 256)
    ),
    "SolarizeAdd": _colours(colour_operations.solarize_add, lambda level, sign: _whole(level, 110)),
    "ColorIncreasing": _enhance(colour_operations.color),
    "ContrastIncreasing": _enhance(colour_operations.contrast),
    "BrightnessIncreasing": _enhance(colour_operations.brightness),
    "SharpnessIncreasing": _enhance(colour_operations.sharpness),
    "ShearX": Operation(_signed(0.3), warping.shear_x),
    "ShearY": Operation(_signed(0.3), warping.shear_y),
    "TranslateXRel": Operation(_signed(0.45), warping.translate_x),
    "TranslateYRel": Operation(_signed(0.45), warping.translate_y),
}
"""timm's names and order."""
