"""Is it the same model? A digest of all that it computes with."""

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from videomae_jax.inference import Checkpoint


def model_digest(checkpoint: "Checkpoint") -> str:
    """A digest of all that the model computes with, the same on every machine.

    The parameters by the digests of their files in the conversion report, which are there since
    they were written; or, without one, by their values.
    """
    parts: dict[str, Any] = {
        "architecture": type(checkpoint.model).__name__,
        "config": checkpoint.config.to_dict(),
        "preprocess": checkpoint.preprocess.to_dict(),
        "labels": None if checkpoint.labels is None else checkpoint.labels.to_list(),
        "params": _params_digests(checkpoint),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _params_digests(checkpoint: "Checkpoint") -> dict[str, str]:
    written = checkpoint.conversion.get("written")
    entries = written if isinstance(written, list) else []
    # Orbax's other files hold the time of writing.
    digests = {
        str(entry["name"]): str(entry["sha256"])
        for entry in entries
        if str(entry.get("name")).startswith("params/state/") and entry.get("sha256")
    }
    if digests:
        return digests
    import jax
    import numpy as np

    leaves = jax.tree_util.tree_leaves_with_path(checkpoint.params)
    return {
        jax.tree_util.keystr(path): hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()
        for path, leaf in leaves
    }
