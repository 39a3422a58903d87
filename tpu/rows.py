"""One row of a result."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tpu.decoder import Decoded

if TYPE_CHECKING:
    from tpu.manifest import Manifest


def result_row(
    manifest: "Manifest",
    row: int,
    decoded: Decoded,
    *,
    retries: int,
    answer: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The columns of `tpu.job.result_schema`; `answer` is the model's, None where that failed."""
    table = manifest.table
    passed = {name: table[name][row].as_py() for name in table.column_names}
    told = {
        "frames": decoded.frames,
        "duration_s": decoded.duration_s,
        "decode_s": decoded.decode_s,
        "retries": retries,
        "error": decoded.error,
    }
    return {"row": row, **passed, **(answer or {}), **told}
