"""Where this package keeps what it can make again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/videomae_jax`; by the XDG specification a relative path counts as unset.

    Then it lies in `~/.cache`. Nothing is made.

    Raises:
        RuntimeError: if that is the user's home, and there is none.
    """
    said = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(said) if os.path.isabs(said) else Path.home() / ".cache"
    return base / "videomae_jax"
