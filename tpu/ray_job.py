"""The batch job over many machines, by Ray Data: the same rows, the same OUT.

    driver: rows to do -> decode actors, one a core -> predict actors, one a host -> driver: OUT

The driver holds the lock of OUT and is the only writer; rows are small. Clips travel as uint8
through Ray's object store, which bounds how many are decoded ahead. When a machine is lost its work
is done again elsewhere, and a row that comes twice is written once. This package must be installed
on every machine, and what `--model` names must be the same model there.
"""

import argparse
import contextlib
import dataclasses
import logging
import math
import os
import queue
import threading
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tpu.decoder import Decoded
from tpu.job import JobError, answer_schema
from tpu.progress import Progress
from tpu.ray_actors import PLATFORMS, DecodeVideos, Predict
from tpu.results import Results
from tpu.rows import result_row
from tpu.stopping import Stop

if TYPE_CHECKING:
    from tpu.commands.job_options import Prepared

VIDEOS_A_BLOCK = 16
"""What a decode actor does at a time, and what is done again when its machine is lost."""
LOOK_S = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
    """Who does what: `predictors` actors with `devices` of a resource `kind`, and `decoders`.

    kind: "TPU", "GPU" or "CPU", a resource of Ray's.
    """

    kind: str
    devices: int
    predictors: int
    decoders: int


def plan_cluster(
    nodes: list[dict[str, float]],
    *,
    accelerator: str | None = None,
    predictors: int | None = None,
    decoders: int | None = None,
) -> Cluster:
    """From the resources of each machine: a model on each accelerator host, a decoder a core else.

    `accelerator` is "KIND" or "KIND:DEVICES", where not what is found first of TPU, GPU, CPU.

    Raises:
        JobError: for a cluster without what is wanted.
    """
    kind, _, said = (accelerator or "").partition(":")
    if not kind:
        kind = next((each for each in ("TPU", "GPU") if any(each in node for node in nodes)), "CPU")
    if kind not in PLATFORMS or (said and not said.isdecimal()):
        raise JobError(f"--accelerator is TPU, GPU or CPU, as in TPU:4, got {accelerator!r}")
    hosts = [int(node[kind]) for node in nodes if node.get(kind, 0) >= 1]
    if not hosts:
        raise JobError(f"no machine of the cluster has {kind}")
    cores = int(sum(node.get("CPU", 0) for node in nodes))
    # On CPUs a model is computed with all cores of its machine, whatever Ray counts.
    devices = int(said) if said else (1 if kind == "CPU" else min(hosts))
    models = predictors or len([host for host in hosts if host >= devices])
    if not models:
        raise JobError(f"no machine of the cluster has {devices} of {kind}")
    left = cores - models
    if decoders is None and left < 1:
        raise JobError(f"the cluster has {cores} CPUs, {models} go to the models and none is left")
    return Cluster(kind=kind, devices=devices, predictors=models, decoders=decoders or left)


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[list[dict[str, float]]]:
    """Join a cluster, or start one on this machine; yields the resources of each machine.

    Raises:
        JobError: without Ray, or where there is no cluster at the address.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise JobError("Ray is missing: pip install 'videomae-jax[ray]'") from error
    try:
        # Its core tells of what nobody here can act on, and, on starting, that it won't.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        with warnings.catch_warnings(), silent_stderr():
            # JAX warns of forks; what Ray forks becomes another program at once.
            warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
            ray.init(
                address=None if address == "local" else address or "auto",
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except ConnectionError as error:
        raise JobError(
            f"no Ray cluster is found at {address or 'auto'}; start one (ray start --head), or say "
            f"--address local for this machine alone"
        ) from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield [node["Resources"] for node in ray.nodes() if node["Alive"]]
    finally:
        ray.shutdown()


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
    """What this process's native code writes to stderr meanwhile goes nowhere."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def run_on_ray(
    prepared: "Prepared",
    results: Results,
    cluster: Cluster,
    options: argparse.Namespace,
    *,
    progress: Progress,
    stop: Stop,
) -> str:
    """Do all rows that are not done; returns "done", "stopped" or "failed" as `tpu.run.run`."""
    rows = results.to_do(options.limit)
    found: queue.Queue[Any] = queue.Queue(8)
    threading.Thread(
        target=_collect, args=(prepared, rows, cluster, options, found), daemon=True
    ).start()
    while not stop.asked.is_set():
        try:
            table = found.get(timeout=LOOK_S)
        except queue.Empty:
            results.flush_old()
            progress.tell()
            continue
        if isinstance(table, BaseException):
            raise table
        if table is None:
            return "done"
        for row in table.to_pylist():
            _write(prepared, results, progress, row)
        progress.tell()
        if options.max_failures is not None and progress.failed > options.max_failures:
            return "failed"
    return "stopped"


def _collect(
    prepared: "Prepared",
    rows: np.ndarray,
    cluster: Cluster,
    options: argparse.Namespace,
    found: "queue.Queue[Any]",
) -> None:
    try:
        for table in answers(prepared, rows, cluster, options):
            found.put(table)
        found.put(None)
    except BaseException as error:
        found.put(error)


def answers(
    prepared: "Prepared", rows: np.ndarray, cluster: Cluster, options: argparse.Namespace
) -> Iterator[Any]:
    """pyarrow Tables with `row`, the model's columns and what was told, in any order."""
    import pyarrow as pa
    import ray.data

    manifest, reading = prepared.manifest, prepared.reading
    locations = [manifest.location(row) for row in rows.tolist()]
    table = pa.table({"row": rows, "location": pa.array(locations, pa.string())})
    blocks = math.ceil(len(rows) / VIDEOS_A_BLOCK)
    parts = [table.slice(VIDEOS_A_BLOCK * block, VIDEOS_A_BLOCK) for block in range(blocks)]
    answer = answer_schema(prepared.job, prepared.checkpoint.config.hidden_size)
    resources = {"GPU": {"num_gpus": cluster.devices}, "CPU": {}}
    device: Any = resources.get(cluster.kind, {"resources": {cluster.kind: cluster.devices}})
    decoded = ray.data.from_arrow(parts).map_batches(
        DecodeVideos,
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=cluster.decoders),
        fn_constructor_args=(reading, options.decode_timeout, "://" in "".join(locations[:1])),
        num_cpus=1,
    )
    predicted = decoded.map_batches(
        Predict,
        batch_size=VIDEOS_A_BLOCK,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=cluster.predictors),
        fn_constructor_args=(
            options,
            prepared.job,
            answer,
            cluster.kind,
        ),
        num_cpus=1,
        **device,
    )
    yield from predicted.iter_batches(batch_size=None, batch_format="pyarrow")


def _write(
    prepared: "Prepared", results: Results, progress: Progress, found: dict[str, Any]
) -> None:
    row, retries = int(found.pop("row")), int(found.pop("retries"))
    frames, error = found.pop("frames"), found.pop("error")
    duration_s, decode_s = found.pop("duration_s"), found.pop("decode_s")
    decoded = Decoded(
        frames=None if frames < 0 else frames,
        duration_s=None if math.isnan(duration_s) else duration_s,
        decode_s=None if math.isnan(decode_s) else decode_s,
        error=error or None,
    )
    answer = None if error else found
    if results.add(result_row(prepared.manifest, row, decoded, retries=retries, answer=answer)):
        progress.add(failed=bool(error))
