"""An id on the Hugging Face hub -> the folder with its files, downloaded once."""

import dataclasses
import json
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
        # A link into blobs/ that leads nowhere is no file.
        if any((folder / name).is_file() for name in patterns[:2]):
            break
    # The library can't always tell a folder that was downloaded in part.
    if (lacking := _lacking(folder)) is not None:
        reason = f"has {lacking}, as far as it is cached here"
        raise ConversionError(_by_hand(repo_id, revision, reason))
    return Snapshot(folder=folder, repo_id=repo_id, revision=folder.name)


def _download(repo_id: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        """Shown on a terminal only; the library shows one of its bars anywhere."""

        def __init__(self, *arguments, **options):
            options["disable"] = not sys.stderr.isatty() or options.get("disable")
            super().__init__(*arguments, **options)

    return Path(
        snapshot_download(repo_id, revision=revision, allow_patterns=patterns, tqdm_class=Bar)
    )


def _lacking(folder: Path) -> str | None:
    """What a snapshot lacks, as in "no config.json"; None if it can be read as a whole."""
    present = {path.name for path in folder.iterdir() if path.is_file()}
    if "config.json" not in present:
        return "no config.json"
    for single, index, _ in WEIGHTS:
        if single in present:
            return None
        if index in present:
            missing = sorted(_shards(folder / index) - present)
            return f"no {missing[0]}" if missing else None
    return "neither model.safetensors nor pytorch_model.bin"


def _shards(index: Path) -> set[str]:
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return {name for name in names if isinstance(name, str)}
    # What is wrong with it is for the conversion to say.
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return set()


def _reason(error: Exception, revision: str | None) -> str:
    """Why a repository can't be had, as the second half of a sentence."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.GatedRepoError):
        return "asks for permission: get it on its page, then log in with `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "doesn't exist, or is private (log in with `hf auth login`)"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"has no revision {revision}"
    if isinstance(error, errors.HFValidationError):
        return "can't be: it is no valid id"
    if isinstance(error, errors.LocalEntryNotFoundError):
        why = " (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else ""
        # Of the files asked for; others of the repository may well be cached.
        return f"is out of reach{why}, and not whole in the cache here"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"can't be downloaded ({lines[0]})"


def _by_hand(repo_id: str, revision: str | None, reason: str) -> str:
    return (
        f"{repo_id}: no path here, and on the hub it {reason}; or download config.json, "
        f"preprocessor_config.json and model.safetensors from "
        f"https://huggingface.co/{repo_id}/tree/{revision or 'main'} into a folder and give that: "
        f"python -m convert FOLDER OUT"
    )
