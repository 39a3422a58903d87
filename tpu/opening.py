"""OUT, made or gone on with: whose it is, and whether it was begun with the same job."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tpu.job import Job, JobError
from tpu.lock import writer_lock
from tpu.place import Place
from tpu.results import ROWS_A_PART, SECONDS_A_PART, Results
from tpu.shards import Shard

if TYPE_CHECKING:
    import pyarrow as pa


@contextlib.contextmanager
def open_results(
    out: str,
    job: Job,
    schema: "pa.Schema",
    *,
    shard: Shard | None = None,
    rows_a_part: int = ROWS_A_PART,
    seconds_a_part: float = SECONDS_A_PART,
) -> Iterator[Results]:
    """OUT, made or gone on with, held against other writers; what was added is written at the end.

    It is written, too, where the body raises.

    Raises:
        JobError: if another run writes to it, if it was begun with other settings, or holds
            something else than results.
        BrokenOffError: if it can't be written to any more, on leaving.
    """
    import fsspec

    try:
        filesystem, root = fsspec.core.url_to_fs(str(out))
    except (ImportError, ValueError) as error:
        raise JobError(f"OUT {out} can't be opened ({error})") from error
    place = Place(filesystem, root.rstrip("/"))
    shard = shard or Shard()
    with contextlib.ExitStack() as stack:
        try:
            _make(place, out)
            held = stack.enter_context(writer_lock(filesystem, place.path("_job"), shard))
            _agree(place, job, out)
            place.remove_abandoned(shard)
            results = Results(place, job, schema, shard, held, rows_a_part, seconds_a_part)
        except OSError as error:
            raise JobError(f"OUT {out} can't be written to ({error})") from error
        stack.callback(results.close)
        yield results


def _make(place: Place, out: str) -> None:
    if "_job" not in place.names():
        if place.is_local and Path(place.root).is_file():
            raise JobError(f"OUT {out} is a file; name a folder")
        strangers = place.names()
        if strangers:
            raise JobError(
                f"OUT {out} holds other things ({', '.join(strangers[:3])}); name a new folder"
            )
    place.filesystem.makedirs(place.path("_job", "done"), exist_ok=True)


def _agree(place: Place, job: Job, out: str) -> None:
    """Compare with what OUT was begun with, or note it."""
    try:
        begun = json.loads(place.read("_job", "settings.json"))
    except FileNotFoundError:
        if any(name.startswith("part-") for name in place.names()):
            raise JobError(f"OUT {out} has lost _job/settings.json; name a new folder") from None
        text = json.dumps(job.to_dict(), indent=2) + "\n"
        place.write(text.encode(), "_job", "settings.json", shard=Shard())
        return
    except ValueError:
        begun = None
    different = job.differences(begun)
    if different:
        raise JobError(
            f"OUT {out} was begun otherwise: {'; '.join(different)}. "
            f"Say the same again, or name another OUT"
        )
