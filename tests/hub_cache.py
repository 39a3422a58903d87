"""A stand-in for what huggingface_hub keeps on disk of a repository: no network."""

import hashlib
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write_repository(
    cache: Path, repo_id: str, files: Path, *, commit: str = COMMIT, branch: str = "main"
) -> Path:
    """Lay the files of a folder out as one revision in a cache; returns the snapshot's folder.

    Contents lie in blobs/ under their digest, snapshots/COMMIT/ has symbolic links to them, and
    refs/BRANCH says which commit that is.
    """
    home = cache / f"models--{repo_id.replace('/', '--')}"
    snapshot = home / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (home / "blobs").mkdir(exist_ok=True)
    (home / "refs").mkdir(exist_ok=True)
    (home / "refs" / branch).write_text(commit)
    for file in files.iterdir():
        content = file.read_bytes()
        blob = home / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    return snapshot
