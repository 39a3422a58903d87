"""`python -m tpu ray`: its options, and what it prints."""

import argparse
import os
from typing import Any

from tpu.commands.job_options import add_job_options, prepare, rows_to_do, whole
from tpu.commands.run import EXIT, report
from tpu.stopping import Stop, stop_on_sigterm
from videomae_jax.command import log_on_stderr


def add_ray(commands: Any) -> None:
    """Add the command to a parser's `commands`."""
    command = commands.add_parser(
        "ray", help="the same over many machines, by Ray Data", description=run_job.__doc__
    )
    add_job_options(command)
    command.add_argument(
        "--address",
        metavar="auto|HOST:PORT|local",
        help="of the cluster (default: the one that this machine is in); local starts one here",
    )
    command.add_argument(
        "--accelerator",
        metavar="KIND[:N]",
        help="what a model is put on, TPU, GPU or CPU, and how many of it (default: what the "
        "machines have, all of one machine)",
    )
    command.add_argument(
        "--predictors", type=whole, metavar="N", help="models (default: one a machine that can)"
    )
    command.add_argument(
        "--decoders", type=whole, metavar="N", help="decoders at most (default: one a core left)"
    )
    command.set_defaults(run=run_job)


def run_job(options: argparse.Namespace) -> int:
    """As `run`, decoding and computing on the machines of a Ray cluster; OUT is written from here.

    Rows, OUT and going on are those of `run`: either may go on with what the other began.
    """
    # The driver computes nothing, and must not take an accelerator from those that do.
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with stop_on_sigterm() as stop, log_on_stderr("tpu"):
        return EXIT[do_job(options, stop)]


def do_job(options: argparse.Namespace, stop: Stop) -> str:
    """Open OUT, join the cluster, and do all rows; returns how it ended."""
    from tpu.opening import open_results
    from tpu.progress import Progress
    from tpu.ray_job import connected, plan_cluster, run_on_ray

    # The driver has one device, and keeps the model whole.
    alone = {"sharding": "replicated", "model_axis": None}
    prepared = prepare(argparse.Namespace(**vars(options) | alone))
    with open_results(
        options.out, prepared.job, prepared.schema, seconds_a_part=options.flush_seconds
    ) as results:
        stop.rescue = results.flush
        to_do = len(rows_to_do(options, results))
        wanted = min(prepared.job.rows, options.limit or prepared.job.rows)
        progress = Progress(to_do, wanted - to_do)
        outcome = "done"
        if to_do:
            with connected(options.address) as nodes:
                cluster = plan_cluster(
                    nodes,
                    accelerator=options.accelerator,
                    predictors=options.predictors,
                    decoders=options.decoders,
                )
                outcome = run_on_ray(
                    prepared, results, cluster, options, progress=progress, stop=stop
                )
    progress.end(outcome)
    report(options, outcome, progress.failed)
    return outcome
