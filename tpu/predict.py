"""Clips -> what the model says: one compiled program for batches of one size, over the devices."""

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from tpu.job import Job, JobError

if TYPE_CHECKING:
    import jax
    from jax.sharding import Mesh

    from videomae_jax.inference import Checkpoint
    from videomae_jax.model import VideoModel


class Predictor:
    """The compiled model; `batch` clips at a time, of all devices together.

    Args:
        checkpoint: what `vm.load` gave.
        job: its task, and the number of classes wanted.
        batch: clips a device; None follows the kind of device.
        mesh: of the devices that share each batch, as the parameters are placed on it; this
            process's own by default.
        sharding: how that is, one of `sharding.SHARDINGS`.

    Raises:
        JobError: for a model that can't do the task.
    """

    def __init__(
        self,
        checkpoint: "Checkpoint",
        job: Job,
        *,
        batch: int | None = None,
        mesh: "Mesh | None" = None,
        sharding: str = "replicated",
    ):
        from videomae_jax.batches import Program
        from videomae_jax.model import VideoPretrainer

        check_task(checkpoint, job.task)
        self._checkpoint, self._job = checkpoint, job
        model, params = checkpoint.model, checkpoint.params
        if isinstance(model, VideoPretrainer):
            params = params["encoder"]
        self._program = Program(
            features(model) if job.task == "embed" else model,
            params,
            checkpoint.preprocess,
            batch=batch,
            mesh=mesh,
            sharding=sharding,
            finish=pooled,
        )
        self.batch = self._program.batch
        self.clip_shape = self._program.clip_shape

    def start(self, clips: np.ndarray) -> "jax.Array":
        """Begin with uint8 [batch, T, h, w, C]; returns at once, float32 [batch, labels or D].

        `clips` must not change until that is there: a CPU reads them where they are.
        """
        return self._program.start(clips)

    def columns(self, outputs: np.ndarray) -> dict[str, Any]:
        """The columns of one video, from what its views [V, labels or D] gave."""
        from videomae_jax.views import merge_views

        if not np.isfinite(outputs).all():
            raise ValueError("the model gives numbers that are not finite; convert it again")
        if self._job.task == "embed":
            return {"embedding": outputs.astype(np.float64).mean(axis=0).astype(np.float32)}
        config, labels = self._checkpoint.config, self._checkpoint.labels
        multi_label = config.problem_type == "multi_label_classification"
        assert labels is not None
        ranked = labels.rank_probabilities(
            merge_views(outputs, multi_label=multi_label), self._job.top_k
        )
        return {
            "indices": [each.index for each in ranked],
            "labels": [each.label for each in ranked],
            "probabilities": [each.probability for each in ranked],
        }


def pooled(outputs: "jax.Array") -> "jax.Array":
    """Logits or features [B, D] as they are; tokens [B, L, D] as their mean."""
    return outputs if outputs.ndim == 2 else outputs.mean(axis=1, dtype=np.float32)


def check_task(checkpoint: "Checkpoint", task: str) -> None:
    """Refuse what a model can't do.

    Raises:
        JobError: with the mend.
    """
    if task == "embed":
        return
    if checkpoint.labels is None or not checkpoint.config.num_labels:
        raise JobError(
            f"a {type(checkpoint.model).__name__} without classes can't classify; say --task "
            f"embed, or convert a fine-tuned checkpoint"
        )
    if checkpoint.config.problem_type == "regression":
        raise JobError("a regression model has no classes; say --task embed")


def features(model: "VideoModel") -> "VideoModel":
    """The model as it gives features: pooled [B, D], or tokens [B, L, D] of one without a pool.

    A pre-training model's is its encoder, of all tokens.
    """
    from videomae_jax.model import VideoClassifier, VideoEncoder, VideoPretrainer

    if isinstance(model, VideoClassifier):
        return model.clone(config=dataclasses.replace(model.config, num_labels=0))
    if isinstance(model, VideoPretrainer):
        return VideoEncoder(model.config, model.dtype, model.attention_backend, model.unroll)
    return model
