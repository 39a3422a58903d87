"""Whose is the folder of a run? WORKDIR holds one run, and is gone on with by the same alone.

WORKDIR/run.json            what the run is made of
WORKDIR/checkpoints/        see `checkpoints.py`
WORKDIR/metrics.jsonl       see `metrics.py`
WORKDIR/final/              the model, when the run is done
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videomae_jax.training.settings import Recipe
from videomae_jax.writing import CheckpointError, write_json

if TYPE_CHECKING:
    from videomae_jax.training.examples import Examples

FORMAT = "videomae_jax/run/1"
# They change nothing of what is computed.
FREE = {
    "recipe.input.workers",
    "recipe.checkpoint_every",
    "recipe.keep",
    "recipe.evaluate_every",
}


@contextlib.contextmanager
def claim(workdir: Path, content: Mapping[str, Any], *, write: bool = True) -> Iterator[None]:
    """Keep the folder for this run meanwhile; `content` says what the run is made of.

    write: whether this process notes it, of several that work together.

    Raises:
        CheckpointError: if another run is in the folder, naming all that differs; if a process
            works on this one; or if it can't be a folder.
    """
    content = json.loads(json.dumps({"format": FORMAT, **content}))
    file = workdir / "run.json"
    if file.exists() and _begun(workdir):
        differences = _differences(_read(file), content)
        if differences:
            raise CheckpointError(
                f"{workdir} holds another run ({'; '.join(differences)}); name another --workdir, "
                f"or say what it was begun with"
            )
    if not write:
        yield
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{workdir} can't be a folder ({error.strerror})") from error
    from filelock import FileLock, Timeout

    lock = FileLock(workdir / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise CheckpointError(f"{workdir}: another process is at work on this run") from error
    try:
        write_json(file, content)
        yield
    finally:
        lock.release()


def _begun(workdir: Path) -> bool:
    """Whether there is anything to go on with: a start that failed keeps no one out."""
    checkpoints = workdir / "checkpoints"
    return (workdir / "final").exists() or (checkpoints.is_dir() and any(checkpoints.iterdir()))


def description(recipe: Recipe, train: "Examples", *, init: str | None) -> dict[str, Any]:
    """What a run is made of, for `claim`."""
    digest = hashlib.sha256()
    for path in train.paths:
        digest.update(path.encode() + b"\0")
    if train.labels is not None:
        digest.update(train.labels.tobytes())
    return {
        "recipe": dataclasses.asdict(recipe),
        "data": {"videos": len(train.paths), "sha256": digest.hexdigest()},
        "init": init,
    }


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: can't be read ({error})") from error


def _differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    before, after = flat(there), flat(now)
    return [
        f"{name}: {before.get(name)!r} there, {after.get(name)!r} now"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name) and name not in FREE
    ]


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested entries by dotted names."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found
