"""What `run` and `ray` are asked alike, and what follows from it."""

import argparse
import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpu.commands.aot import add_sharding
from tpu.job import FORMATS, TASKS, Job, JobError
from videomae_jax.boxed import OPTION_HELP
from videomae_jax.sampling import SAMPLING

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from tpu.manifest import Manifest
    from tpu.predict import Predictor
    from tpu.reading import Reading
    from tpu.results import Results
    from videomae_jax.inference import Checkpoint


def add_job_options(command: argparse.ArgumentParser) -> None:
    """MANIFEST, OUT, and all options that are not about where the work is done."""
    command.add_argument(
        "manifest",
        metavar="MANIFEST",
        help="the videos: a folder, a glob, a text file (a path a line), or a CSV or Parquet file "
        "with a column `path`, whose other columns pass through; also gs://, s3://, hf://",
    )
    command.add_argument(
        "out", metavar="OUT", help="folder of the results; the same again goes on where it ended"
    )
    command.add_argument(
        "--model",
        metavar="DIR|FOLDER|ID",
        help=OPTION_HELP,
    )
    command.add_argument("--revision", metavar="R", help="of an id: a branch, tag or commit")
    command.add_argument(
        "--num-heads", type=int, metavar="N", help="attention heads, against what the config says"
    )
    command.add_argument(
        "--task", choices=TASKS, default="classify", help="what a row tells (default: classify)"
    )
    command.add_argument(
        "--top-k", type=whole, default=5, metavar="K", help="classes a row (default: 5)"
    )
    command.add_argument(
        "--views",
        default="1x1",
        metavar="SEGMENTSxCROPS",
        help="clips of each video, in time and along its longer side, merged (default: 1x1)",
    )
    command.add_argument(
        "--sampling",
        choices=list(SAMPLING),
        help="which frames (default: uniform; kinetics for several segments)",
    )
    command.add_argument(
        "--sampling-rate",
        type=whole,
        default=4,
        metavar="R",
        help="distance between frames, for the rules that have one (default: 4)",
    )
    command.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        default="bfloat16",
        help="what to compute in (default: bfloat16)",
    )
    command.add_argument(
        "--root", metavar="DIR", help="of relative paths (default: the manifest's own folder)"
    )
    command.add_argument(
        "--limit", type=whole, metavar="N", help="only the manifest's first N videos"
    )
    command.add_argument(
        "--format", choices=FORMATS, default="parquet", help="of OUT (default: parquet)"
    )
    command.add_argument(
        "--batch",
        type=whole,
        metavar="N",
        help="clips a device at a time (default: 32; 4 on a CPU)",
    )
    add_sharding(command)
    command.add_argument(
        "--decode-timeout",
        type=seconds,
        default=120.0,
        metavar="S",
        help="seconds until a decode is abandoned (default: 120)",
    )
    command.add_argument(
        "--max-failures",
        type=int,
        metavar="N",
        help="end with code 3 after more than N bad videos (default: never)",
    )
    command.add_argument(
        "--retry-failed",
        action="store_true",
        help="take rows with an error out of OUT, and do them again",
    )
    command.add_argument(
        "--flush-seconds",
        type=float,
        default=60.0,
        metavar="S",
        help="write what is done at least every S seconds (default: 60)",
    )


def whole(text: str) -> int:
    """A whole number of at least 1; 1e6 is one."""
    value = float(text)
    if not value.is_integer() or value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text}")
    return int(value)


def seconds(text: str) -> float:
    """More than 0."""
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be more than 0 seconds, got {text}")
    return value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """All that a job is made of, before any video is opened."""

    manifest: "Manifest"
    checkpoint: "Checkpoint"
    job: Job
    reading: "Reading"
    schema: "pa.Schema"


def prepare(options: argparse.Namespace) -> Prepared:
    """Read the manifest, load the model, and see whether they go together.

    Raises:
        ValueError: one line with the mend.
    """
    from tpu.job import result_schema
    from tpu.manifest import read_manifest
    from tpu.predict import check_task
    from tpu.reading import Reading
    from videomae_jax.model_digest import model_digest
    from videomae_jax.views import Views

    need_packages()
    views = Views.parse(options.views, sampling=options.sampling, rate=options.sampling_rate)
    manifest = read_manifest(options.manifest, root=options.root)
    checkpoint = load_model(options)
    check_task(checkpoint, options.task)
    reading = Reading.of(checkpoint.config, checkpoint.preprocess, views)
    job = Job(
        manifest=manifest.digest,
        rows=len(manifest),
        model=model_digest(checkpoint),
        task=options.task,
        views=str(views),
        sampling=views.sampling,
        rate=views.rate,
        dtype=options.dtype,
        num_heads=checkpoint.config.num_attention_heads,
        top_k=options.top_k if options.task == "classify" else 0,
        format=options.format,
    )
    schema = result_schema(job, manifest.table.schema, width=checkpoint.config.hidden_size)
    return Prepared(
        manifest=manifest, checkpoint=checkpoint, job=job, reading=reading, schema=schema
    )


def need_packages() -> None:
    """Say at once what the job lacks.

    Raises:
        JobError: with what to install.
    """
    import importlib.util

    missing = [name for name in ("pyarrow", "fsspec") if not importlib.util.find_spec(name)]
    if missing:
        raise JobError(f"{' and '.join(missing)} is missing: pip install 'videomae-jax[batch]'")


def load_model(options: argparse.Namespace) -> Any:
    """The checkpoint, its parameters where they are needed.

    On an accelerator they are in the dtype that it computes in.
    """
    import functools

    import jax

    import videomae_jax as vm
    from videomae_jax.sharding import param_shardings

    on_cpu = jax.local_devices()[0].platform == "cpu"
    mesh = mesh_for(options)
    model = options.model
    return vm.load(
        Path(model) if model is not None and os.path.isdir(model) else model,
        revision=options.revision,
        num_heads=options.num_heads,
        dtype=options.dtype,
        param_dtype=None if on_cpu or options.dtype == "float32" else options.dtype,
        place=functools.partial(param_shardings, mesh=mesh, sharding=options.sharding),
    )


def mesh_for(options: argparse.Namespace) -> Any:
    """Of this process's devices, as the options want it."""
    from videomae_jax.sharding import mesh_of

    return mesh_of(sharding=options.sharding, model_axis=options.model_axis)


def rows_to_do(options: argparse.Namespace, results: "Results") -> "np.ndarray":
    """The rows that are left; with --retry-failed those with an error are, too."""
    if options.retry_failed:
        results.forget_failed(options.limit)
    return results.to_do(options.limit)


def make_predictor(options: argparse.Namespace, checkpoint: "Checkpoint", job: Job) -> "Predictor":
    """The compiled model on this process's devices."""
    from tpu.predict import Predictor

    return Predictor(
        checkpoint, job, batch=options.batch, mesh=mesh_for(options), sharding=options.sharding
    )
