"""JSON objects that become dataclasses: nothing in them is passed over in silence."""

import difflib
from collections.abc import Collection, Mapping
from typing import Any

LARGEST_SIDE = 2**16


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


def is_whole(value: Any) -> bool:
    """Whether it is a whole number; bool is an int to Python, never to a config."""
    return isinstance(value, int) and not isinstance(value, bool)


def sides(name: str, size: Any, allowed: tuple[set[str], ...]) -> dict[str, int]:
    """Sides in pixels, in the order of their names.

    Raises:
        ValueError: for other names than those of one `allowed` set, or a side that can't be.
    """
    if not isinstance(size, Mapping) or set(size) not in allowed:
        wanted = " or ".join("{" + ", ".join(sorted(keys)) + "}" for keys in allowed)
        raise ValueError(f"{name} must be {wanted}, got {size!r}")
    for key, value in size.items():
        if not is_whole(value) or not 1 <= value <= LARGEST_SIDE:
            raise ValueError(f"{name} {key} must be from 1 to {LARGEST_SIDE}, got {value!r}")
    return dict(sorted(size.items()))


def numbers(name: str, values: Any, *, positive: bool = False) -> tuple[float, ...] | float:
    """One number, or one for each colour.

    Raises:
        ValueError: for none, or one that `number` refuses.
    """
    if not isinstance(values, (list, tuple)):
        return number(name, values, positive=positive)
    if not values:
        raise ValueError(f"{name} must have a number for each colour, got none")
    return tuple(number(name, value, positive=positive) for value in values)


def number(name: str, value: Any, *, positive: bool = False) -> float:
    """A number far inside float32, so that no pixel value can overflow.

    Raises:
        ValueError: for another, or one that isn't `positive` where it must be.
    """
    is_number = isinstance(value, float) or is_whole(value)
    if not is_number or not abs(value) < 1e9 or (positive and value < 1e-9):
        wanted = "a positive number" if positive else "a number"
        raise ValueError(f"{name} must be {wanted} of ordinary size, got {value!r}")
    return float(value)
