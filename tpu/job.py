"""What decides about the rows of a batch job, and the columns that they have.

Two runs may work on one OUT, one after the other, only if they say the same here: their rows then
are the same, whoever writes them. How fast they get there (batch, workers, devices) is no part.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

TASKS = ("classify", "embed")
FORMATS = ("parquet", "jsonl")
# As `videomae_jax.sharding` has them, which imports JAX.
SHARDINGS = ("replicated", "fsdp", "tensor")

DIGESTS = {"manifest": "the manifest has other rows", "model": "the model is another"}
"""What is said of settings whose values say nothing."""

OPTIONS = {
    "rows": "rows of the manifest",
    "num_heads": "--num-heads",
    "top_k": "--top-k",
    "rate": "--sampling-rate",
}
"""How a user says a setting, where that is not an option of its name."""


class JobError(ValueError):
    """A job that can't be begun, or not on this OUT; one line with the mend."""


class BrokenOffError(RuntimeError):
    """A job that was begun and can't go on; one line. Running it again may do."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """The settings of a job; what OUT was begun with is kept in its settings.json.

    manifest: digest of all rows of the manifest, columns that pass through included.
    rows: how many those are.
    model: digest of parameters, config, preprocessing and labels, see `videomae_jax.model_digest`.
    views: such as "5x3", see `videomae_jax.views.Views`; `sampling` and `rate` are of it.
    top_k: classes in a row, at most; 0 for embeddings.
    """

    manifest: str
    rows: int
    model: str
    task: str
    views: str
    sampling: str
    rate: int
    dtype: str
    num_heads: int
    top_k: int
    format: str

    def to_dict(self) -> dict[str, Any]:
        """All settings, ready for JSON."""
        return dataclasses.asdict(self)

    def differences(self, begun: Any) -> list[str]:
        """What this job says otherwise than the settings that OUT was begun with, in words."""
        if not isinstance(begun, dict):
            return ["settings.json is damaged"]
        told = []
        for name, value in self.to_dict().items():
            before = begun.get(name)
            if before == value:
                continue
            if name in DIGESTS:
                told.append(DIGESTS[name])
            else:
                told.append(f"{OPTIONS.get(name, f'--{name}')} was {before}, now {value}")
        return told


def result_schema(job: Job, manifest: "pa.Schema", *, width: int) -> "pa.Schema":
    """The columns of a result: row, the manifest's (path first), the task's, then the rest.

    `width` is that of an embedding. `error` is null where all went well; what the model says is
    null where not.
    """
    import pyarrow as pa

    told = [
        pa.field("frames", pa.int32()),
        pa.field("duration_s", pa.float32()),
        pa.field("decode_s", pa.float32()),
        pa.field("retries", pa.int32()),
        pa.field("error", pa.string()),
    ]
    return pa.schema([pa.field("row", pa.int64()), *manifest, *answer_schema(job, width), *told])


def answer_schema(job: Job, width: int) -> "pa.Schema":
    """The columns of what the model says; `width` is that of an embedding."""
    import pyarrow as pa

    if job.task == "embed":
        return pa.schema([pa.field("embedding", pa.list_(pa.float32(), width))])
    return pa.schema(
        [
            pa.field("indices", pa.list_(pa.int32())),
            pa.field("labels", pa.list_(pa.string())),
            pa.field("probabilities", pa.list_(pa.float32())),
        ]
    )
