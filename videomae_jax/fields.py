"""JSON objects that become dataclasses: nothing in them is passed over in silence."""

import difflib
from collections.abc import Collection
from typing import Any


def refuse_unknown(fields: Any, known: Collection[str], *, what: str) -> None:
    """Refuse anything but a mapping with known names; `what` says what it describes.

    Raises:
        ValueError: naming the first unknown entry and, where one is near, the known one.
    """
    if not isinstance(fields, dict):
        raise ValueError(f"{what} must be a JSON object, got {fields!r}")
    for name in fields:
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, n=1)
            hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
            raise ValueError(f"unknown {what} entry {name!r}{hint}")
