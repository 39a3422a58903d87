"""`python -m tpu run`: its options, and what it prints."""

import argparse
import contextlib
import sys
from typing import Any

from tpu.commands.job_options import (
    Prepared,
    add_job_options,
    make_predictor,
    prepare,
    rows_to_do,
    whole,
)
from tpu.shards import Shard
from tpu.stopping import Stop, stop_on_sigterm
from videomae_jax.background import usable_cores
from videomae_jax.command import log_on_stderr

EXIT = {"done": 0, "stopped": 0, "failed": 3}


def add_run(commands: Any) -> None:
    """Add the command to a parser's `commands`."""
    command = commands.add_parser(
        "run",
        help="classify or embed many videos, restartable",
        description=run_job.__doc__,
    )
    add_job_options(command)
    command.add_argument(
        "--workers",
        type=whole,
        metavar="N",
        help="decode processes (default: one for each core that this process may use)",
    )
    command.add_argument(
        "--shard", metavar="i/n", help="only part i of n of the manifest, i from 0 (default: all)"
    )
    command.add_argument(
        "--distributed",
        action="store_true",
        help="start jax.distributed: each process takes its part; TPU slices, GKE, SLURM and MPI "
        "are recognised, elsewhere say the three options that follow",
    )
    command.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0")
    command.add_argument("--num-processes", type=whole, metavar="N", help="how many there are")
    command.add_argument("--process-id", type=int, metavar="I", help="which this is, from 0")
    command.add_argument(
        "--no-compile-cache",
        dest="compile_cache",
        action="store_false",
        help="compile anew, and keep nothing compiled in the user's cache folder",
    )
    command.set_defaults(run=run_job)


def run_job(options: argparse.Namespace) -> int:
    """Videos in, a row for each out; run it again to go on where it ended.

    OUT holds part files (Parquet, or JSON lines) that appear whole, and in _job what is done. A
    video that can't be read is a row with an error. SIGTERM writes what is done and ends with 0.
    """
    shard = Shard.parse(options.shard) if options.shard else Shard()
    with stop_on_sigterm() as stop, log_on_stderr("tpu"):
        from videomae_jax.compile_cache import use_compile_cache

        if options.distributed:
            shard = shard.of(*join_processes(options))
        cache = use_compile_cache() if options.compile_cache else contextlib.nullcontext()
        with cache:
            return EXIT[do_shard(options, prepare(options), shard, stop)]


def do_shard(options: argparse.Namespace, prepared: Prepared, shard: Shard, stop: Stop) -> str:
    """Open OUT, compile, and do the shard's rows; returns how it ended, see `tpu.run.run`."""
    from tpu.opening import open_results
    from tpu.progress import Progress
    from tpu.run import decode_pool, run

    with open_results(
        options.out,
        prepared.job,
        prepared.schema,
        shard=shard,
        seconds_a_part=options.flush_seconds,
    ) as results:
        stop.rescue = results.flush
        rows = rows_to_do(options, results)
        wanted = len(shard.rows(min(prepared.job.rows, options.limit or prepared.job.rows)))
        progress = Progress(len(rows), wanted - len(rows))
        outcome = "done"
        if len(rows):
            pool = decode_pool(
                prepared.manifest,
                rows,
                prepared.reading,
                workers=options.workers or usable_cores(),
                timeout_s=options.decode_timeout,
            )
            # Its processes start while the program is compiled.
            with pool:
                outcome = run(
                    prepared.manifest,
                    results,
                    pool,
                    make_predictor(options, prepared.checkpoint, prepared.job),
                    progress=progress,
                    stop=stop,
                    max_failures=options.max_failures,
                )
    if outcome == "done" and results.errors:
        # Those of earlier runs on OUT, too, which the figures of this one don't count.
        sys.stderr.write(
            f"tpu: {results.errors} videos have no answer: see the column `error` in "
            f"{options.out}; --retry-failed does them again\n"
        )
    progress.end(outcome)
    report(options, outcome, progress.failed)
    return outcome


def report(options: argparse.Namespace, outcome: str, failed: int) -> None:
    """What a user wants to know at the end that the figures don't say."""
    if outcome == "failed":
        sys.stderr.write(
            f"tpu: error: {failed} videos failed, more than --max-failures {options.max_failures}: "
            f"see the column `error` in {options.out}; everything so far is written\n"
        )
    elif outcome == "stopped":
        sys.stderr.write("tpu: stopped by SIGTERM; run the same command again to go on\n")


def join_processes(options: argparse.Namespace) -> tuple[int, int]:
    """Meet the others by jax.distributed; returns (which process this is, how many there are).

    Then they part: none waits for another's videos, and none is ended by another's end.

    Raises:
        ValueError: where the others can't be found.
    """
    import jax

    # It would hear SIGTERM in place of this job, and do nothing.
    jax.config.update("jax_enable_preemption_service", False)
    given = (options.coordinator, options.num_processes, options.process_id)
    if any(value is not None for value in given) and None in given:
        raise ValueError("--coordinator, --num-processes and --process-id go together")
    try:
        jax.distributed.initialize(*given)
        # Asks the devices, which takes all processes.
        place = jax.process_index(), jax.process_count()
        jax.distributed.shutdown()
    except (RuntimeError, ValueError) as error:
        text = str(error).splitlines()[0]
        raise ValueError(
            f"jax.distributed can't start ({text}); say --coordinator HOST:PORT --num-processes N "
            f"--process-id I, or give each process a --shard"
        ) from error
    return place
