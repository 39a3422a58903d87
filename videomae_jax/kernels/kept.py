"""What a layer keeps for its backward pass, where the rest can be computed again."""

from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

KEPT = "kept"
"""The name of it, for `jax.checkpoint_policies.save_only_these_names`."""


def keep(arrays: Any) -> Any:
    """The arrays, marked as dear to compute: what products and attention gave."""
    return jax.tree.map(lambda array: checkpoint_name(array, KEPT), arrays)
