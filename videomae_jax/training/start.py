"""What does a run start from? Drawn weights, or those of a checkpoint where they fit.

From a checkpoint the encoder is taken, or nothing is. What stands on it (a head, a decoder) is
taken where it is the same, and drawn where it isn't; both are said.
"""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from videomae_jax.config import VideoMAEConfig
from videomae_jax.labels import Labels
from videomae_jax.training.checkpoints import named_leaves
from videomae_jax.training.settings import Recipe

if TYPE_CHECKING:
    from videomae_jax.inference import Checkpoint
    from videomae_jax.weights import Params

logger = logging.getLogger(__name__)

# What weights of the same shapes would compute something else with.
SAME = (
    "patch_size",
    "tubelet_size",
    "num_channels",
    "num_attention_heads",
    "hidden_act",
    "cos_attn",
)


def take_over(
    drawn: "Params",
    checkpoint: "Checkpoint",
    recipe: Recipe,
    labels: Labels | None,
    *,
    source: str,
) -> "Params":
    """`drawn` parameters of the recipe's model, with all that the checkpoint has for it.

    labels: the classes that are trained; the head is taken if the checkpoint has the same.

    Raises:
        ValueError: if the encoder does not fit, naming what differs.
    """
    check_config(checkpoint.config, recipe.model, source=source)
    given = dict(checkpoint.params)
    # An encoder alone has no folder of its own.
    if "encoder" not in given:
        given = {"encoder": given}
    _check_encoder(given["encoder"], drawn["encoder"], source=source)
    # A classifier of the mean has no place for the norm that a pre-trained encoder ends in.
    spare = [f"encoder/{name}" for name in sorted(set(given["encoder"]) - set(drawn["encoder"]))]
    given["encoder"] = {name: given["encoder"][name] for name in drawn["encoder"]}
    if labels is None or checkpoint.labels != labels:
        given.pop("classifier", None)
    fits = {
        name for name in drawn if name in given and _shapes(given[name]) == _shapes(drawn[name])
    }
    decoder = {"decoder", "encoder_to_decoder", "mask_token"} & set(drawn)
    if not decoder <= fits:
        # One was trained for the other.
        fits -= decoder
    _say(source, drawn, fits, {*(set(given) - fits), *spare})
    _warn(checkpoint, recipe, source=source)
    return {name: given[name] if name in fits else drawn[name] for name in drawn}


def check_config(given: VideoMAEConfig, wanted: VideoMAEConfig, *, source: str) -> None:
    """Refuse weights that were trained for another network of the same shapes.

    Raises:
        ValueError: naming the fields, and how to say the checkpoint's.
    """
    differ = [name for name in SAME if getattr(given, name) != getattr(wanted, name)]
    if differ:
        facts = ", ".join(
            f"{name} {getattr(given, name)} where the recipe has {getattr(wanted, name)}"
            for name in differ
        )
        options = " ".join(
            f"--model.{name.replace('_', '-')} {_spelled(getattr(given, name))}" for name in differ
        )
        raise ValueError(f"{source} has {facts}; to train it as it is, say {options}")


def _spelled(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _check_encoder(given: "Params", wanted: "Params", *, source: str) -> None:
    """Refuse weights of other shapes, and any that the model has no place for but a norm's."""
    there, needed = _shapes(given), _shapes(wanted)
    spare = [name for name in there if name not in needed and not name.startswith("norm/")]
    problems = [
        f"encoder/{name} {there.get(name, 'missing')} where {needed.get(name, 'nothing')} is wanted"
        for name in [*needed, *spare]
        if there.get(name) != needed.get(name)
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(
            f"{source} is no start for the recipe's model: {'; '.join(problems[:3])}{more}; set "
            f"--model.* to its sizes, or take a recipe of its size"
        )


def _shapes(tree: Any) -> dict[str, list[int]]:
    return {name: list(leaf.shape) for name, leaf in named_leaves(tree).items()}


def _say(source: str, drawn: "Params", fits: set[str], left: set[str]) -> None:
    parts = [f"{', '.join(sorted(fits))} taken from {source}"]
    new = sorted(set(drawn) - fits)
    if new:
        parts.append(f"{', '.join(new)} new")
    if left:
        parts.append(f"its {', '.join(sorted(left))} left out")
    logger.info("%s", "; ".join(parts))


def _warn(checkpoint: "Checkpoint", recipe: Recipe, *, source: str) -> None:
    """What is allowed, and likely to be a mistake."""
    given, wanted = checkpoint.config, recipe.model
    if given.grid != wanted.grid:
        logger.warning(
            "%s was trained on %s tokens (time x height x width), the recipe has %s: its positions "
            "mean other places",
            source,
            _by(given.grid),
            _by(wanted.grid),
        )
    if given.layer_norm_eps != wanted.layer_norm_eps:
        logger.warning(
            "%s has a layer_norm_eps of %g, the recipe of %g",
            source,
            given.layer_norm_eps,
            wanted.layer_norm_eps,
        )
    scale, shift = checkpoint.preprocess.normalization()
    ours = normalization(recipe)
    if not all(np.allclose(*pair, atol=1e-3) for pair in zip((scale, shift), ours, strict=True)):
        logger.warning(
            "%s was trained on colours normalised otherwise (%s)",
            source,
            checkpoint.preprocess.describe(),
        )


def normalization(recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """As `Preprocess.normalization`, of the recipe's mean and std."""
    mean, std = np.array(recipe.mean), np.array(recipe.std)
    return 1 / 255 / std, -mean / std


def _by(grid: tuple[int, ...]) -> str:
    return " x ".join(map(str, grid))


def host(params: "Params") -> "Params":
    """The parameters as NumPy arrays, whole, on each process."""
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, params)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(params, tiled=True)


def place(tree: Mapping[str, Any], shardings: Any) -> Any:
    """Arrays that each process has whole, on the devices of all."""
    return jax.tree.map(
        lambda leaf, sharding: jax.make_array_from_callback(
            leaf.shape, sharding, lambda index: np.asarray(leaf)[index]
        ),
        tree,
        shardings,
    )
