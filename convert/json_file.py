"""JSON from files and headers: what another reader could take otherwise is refused."""

import json
from pathlib import Path
from typing import Any

from convert.errors import ConversionError

# The longest published one, a config with 710 class names twice, has 60 kB.
MOST_JSON_BYTES = 4 * 2**20
# Of 2**53 and a sign: what other readers of JSON, which have floats alone, take exactly.
MOST_DIGITS = 17


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ConversionError: if it can't be read, is something else, or says a thing twice.
    """
    parsed = _read(path)
    if not isinstance(parsed, dict):
        raise ConversionError(f"{path}: must hold a JSON object")
    return parsed


def read_json_list(path: Path) -> list[Any]:
    """A JSON list from a file.

    Raises:
        ConversionError: as `read_json`.
    """
    parsed = _read(path)
    if not isinstance(parsed, list):
        raise ConversionError(f"{path}: must hold a JSON list")
    return parsed


def _read(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            content = file.read(MOST_JSON_BYTES + 1)
    except OSError as error:
        raise ConversionError(f"{path}: can't be read ({error.strerror or error})") from error
    if len(content) > MOST_JSON_BYTES:
        raise ConversionError(f"{path}: not valid JSON (longer than {MOST_JSON_BYTES} bytes)")
    try:
        return parse_json(content)
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"{path}: not valid JSON ({error})") from error


def parse_json(content: bytes) -> Any:
    """What UTF-8 JSON says.

    Raises:
        ValueError: if it is none, has a key twice in an object, of which readers differ in which
            they take, or a whole number of more than 53 bits, of which they differ, too.
        RecursionError: if it is nested too deep.
    """
    return json.loads(content.decode("utf-8"), object_pairs_hook=_unique, parse_int=_whole)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = set()
        for name, _ in pairs:
            if name in names:
                raise ValueError(f"key {name!r} twice in one object")
            names.add(name)
    return content


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS or abs(int(digits)) > 2**53:
        raise ValueError(f"{digits[:MOST_DIGITS]}, a number of {len(digits)} digits")
    return int(digits)
