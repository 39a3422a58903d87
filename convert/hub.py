"""An id on the Hugging Face hub -> the folder with its files, downloaded once."""

import dataclasses
import os
import re
import sys
from pathlib import Path

from convert.errors import ConversionError

# org/name, as the hub allows them.
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")

SETTINGS = ("config.json", "preprocessor_config.json", "video_preprocessor_config.json")
# In order of preference; nothing else is fetched, no code above all.
WEIGHTS = (
    ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The files of one revision of a repository; `revision` is the hash of its commit."""

    folder: Path
    repo_id: str
    revision: str


def is_hub_id(source: str | os.PathLike) -> bool:
    """Whether `source` reads as org/name and is no path here, nor in a folder that is here."""
    text = os.fspath(source)
    if not isinstance(text, str) or not HUB_ID.fullmatch(text):
        return False
    path = Path(text)
    return not (path.exists() or path.is_symlink() or path.parent.is_dir())


def fetch(repo_id: str, *, revision: str | None = None) -> Snapshot:
    """Download what conversion reads of a repository, into the hub library's own cache.

    Safetensors are preferred: .bin files are fetched only where there are none. `revision` is a
    branch, tag or commit; None: the main branch.

    Raises:
        ConversionError: with one line that says why not, and what to download by hand.
    """
    for patterns in WEIGHTS:
        try:
            folder = _download(repo_id, revision, [*SETTINGS, *patterns])
        # The library raises its own errors, those of its web client and of the system.
        except Exception as error:
            raise ConversionError(_by_hand(repo_id, revision, _reason(error, revision))) from error
        if any(next(folder.glob(pattern), None) for pattern in patterns):
            break
    else:
        reason = "has neither model.safetensors nor pytorch_model.bin, as far as it is cached here"
        raise ConversionError(_by_hand(repo_id, revision, reason))
    if not (folder / "config.json").is_file():
        reason = "has no config.json, as far as it is cached here"
        raise ConversionError(_by_hand(repo_id, revision, reason))
    return Snapshot(folder=folder, repo_id=repo_id, revision=folder.name)


def _download(repo_id: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    return Path(snapshot_download(repo_id, revision=revision, allow_patterns=patterns))


def _reason(error: Exception, revision: str | None) -> str:
    """Why a repository can't be had, as the second half of a sentence."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return "asks for permission: get it on its page, then log in with `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "doesn't exist, or is private (log in with `hf auth login`)"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"has no revision {revision}"
    if isinstance(error, errors.HFValidationError):
        return "can't be: it is no valid id"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return "is out of reach, and not in the cache here"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"can't be downloaded ({lines[0]})"


def _by_hand(repo_id: str, revision: str | None, reason: str) -> str:
    return (
        f"{repo_id}: no path here, and on the hub it {reason}; or download config.json, "
        f"preprocessor_config.json and model.safetensors from "
        f"https://huggingface.co/{repo_id}/tree/{revision or 'main'} into a folder and give that"
    )
