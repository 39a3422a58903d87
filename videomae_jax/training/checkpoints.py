"""The checkpoints of a run: WORKDIR/checkpoints/STEP, whole or not there at all.

Each holds the state of training and the position in its data: what comes after a checkpoint is what
would have come had the run never ended. The last ones are kept, and the best by the validation's
score. Orbax writes them beside training, one at a time.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from videomae_jax.writing import CheckpointError

SCORE = "score"


class Checkpoints:
    """The checkpoints below a folder, which is made.

    keep: how many of the last ones are kept, at least one, beside that with the highest score.

    Raises:
        ValueError: for less.
    """

    def __init__(self, folder: Path, *, keep: int):
        from orbax.checkpoint import v1 as ocp

        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.folder = folder
        policies = ocp.training.preservation_policies
        best: Any = policies.BestN(
            get_metric_fn=lambda metrics: metrics[SCORE],
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        folder.mkdir(parents=True, exist_ok=True)
        kept: Any = policies.AnyPreservationPolicy([policies.LatestN(keep), best])
        self._checkpointer: Any = ocp.training.Checkpointer(
            # Orbax takes absolute paths only.
            str(folder.absolute()),
            preservation_policy=kept,
            # What a process that was killed has left.
            cleanup_tmp_directories=True,
        )
        self._saving: Any = None

    @property
    def latest(self) -> int | None:
        """The step of the last one, None where there is none."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    @property
    def best(self) -> int | None:
        """The step of the one with the highest score, the last of equals."""
        scores = [
            (found.metrics[SCORE], found.step)
            for found in self._checkpointer.checkpoints
            if found.metrics and SCORE in found.metrics
        ]
        return max(scores)[1] if scores else None

    def save(
        self, step: int, state: Any, position: Mapping[str, Any], *, score: float | None = None
    ) -> None:
        """Begin to write the checkpoint of a step; the one before it is finished first.

        state: a tree of arrays, which may be used up (donated) as soon as this returns.
        position: of the iterator over the data, not empty, ready for JSON, of all processes alike.
        score: of the validation at this step, higher is better.

        Raises:
            CheckpointError: if this one or the one before can't be written.
        """
        self.wait()
        if self.latest == step:
            return
        try:
            self._saving = self._checkpointer.save_checkpointables_async(
                step,
                {"state": named_leaves(state), "position": dict(position)},
                force=True,
                metrics=None if score is None else {SCORE: score},
            )
        # Orbax and TensorStore raise whatever their layers raise.
        except Exception as error:
            raise self._cannot(error) from error

    def wait(self) -> None:
        """Return when what was begun is written.

        Raises:
            CheckpointError: if it can't be.
        """
        saving, self._saving = self._saving, None
        try:
            if saving is not None:
                saving.result()
        except Exception as error:
            raise self._cannot(error) from error

    def restore(self, like: Any, *, step: int | None = None) -> tuple[Any, dict[str, Any]]:
        """(state, position) of a step, by default the last; `like` says where each array goes.

        `like` is the state as `jax.ShapeDtypeStruct` with shardings.

        Raises:
            CheckpointError: if the checkpoint is damaged, or of another shape than `like`.
        """
        leaves, tree = jax.tree.flatten(like)
        names = list(named_leaves(like))
        step = self.latest if step is None else step
        try:
            found = self._checkpointer.load_checkpointables(
                step,
                {"state": dict(zip(names, leaves, strict=True)), "position": None},
            )
        except Exception as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CheckpointError(
                f"{self.folder / str(step)}: can't be read ({line}); remove that folder to go on "
                f"from the checkpoint before, if there is one"
            ) from error
        return tree.unflatten([found["state"][name] for name in names]), dict(found["position"])

    def close(self) -> None:
        """Finish what was begun."""
        self.wait()
        self._checkpointer.close()

    def _cannot(self, error: Exception) -> CheckpointError:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return CheckpointError(f"{self.folder}: a checkpoint can't be written ({line})")


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their paths, "params/encoder/patch_embed/kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
