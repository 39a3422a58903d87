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

BATCH = {"cpu": 4}
"""Clips a device, by its platform."""
ACCELERATOR_BATCH = 32


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
        import jax

        from videomae_jax.model import VideoPretrainer
        from videomae_jax.sharding import clip_sharding, mesh_of, param_shardings

        check_task(checkpoint, job.task)
        mesh = mesh_of(sharding=sharding) if mesh is None else mesh
        platform = mesh.devices.flat[0].platform
        self._of_clips = clip_sharding(mesh, sharding=sharding)
        self.batch = (batch or BATCH.get(platform, ACCELERATOR_BATCH)) * mesh.shape["data"]
        if sharding == "fsdp":
            self.batch *= mesh.shape["model"]
        self.clip_shape = checkpoint.config.clip_shape
        self._checkpoint, self._job = checkpoint, job
        params = checkpoint.params
        if isinstance(checkpoint.model, VideoPretrainer):
            params = params["encoder"]
        places = param_shardings(params, mesh, sharding=sharding)
        self._params = jax.device_put(params, places)
        self._program = self._compiled(platform)

    def start(self, clips: np.ndarray) -> "jax.Array":
        """Begin with uint8 [batch, T, h, w, C]; returns at once, float32 [batch, labels or D].

        `clips` must not change before that is there: a CPU reads them where they are.
        """
        import jax

        return self._program(self._params, jax.device_put(clips, self._of_clips))

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

    def _compiled(self, platform: str) -> Any:
        import jax

        from videomae_jax.inference import apply_to_uint8

        model = self._checkpoint.model
        if self._job.task == "embed":
            model = features(model)
        if model.attention_backend is None and platform == "cpu":
            model = model.clone(attention_backend="blocked")
        scale, shift = self._checkpoint.preprocess.normalization()

        def run(params: Any, clips: Any) -> Any:
            outputs = apply_to_uint8(model, {"params": params}, clips, scale, shift)
            return outputs if outputs.ndim == 2 else outputs.mean(axis=1, dtype=np.float32)

        clips = jax.ShapeDtypeStruct(
            (self.batch, *self.clip_shape), np.uint8, sharding=self._of_clips
        )
        return jax.jit(run).lower(self._params, clips).compile()


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
