"""Conversion reports against their schema."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema

from convert import audit

SCHEMA = json.loads(
    Path(audit.__file__).with_name("conversion.schema.json").read_text(encoding="utf-8")
)


def problems(report: Mapping[str, Any]) -> list[str]:
    """What the schema has against a report, after a way through JSON."""
    plain = json.loads(json.dumps(report, allow_nan=False))
    errors = jsonschema.Draft202012Validator(SCHEMA).iter_errors(plain)
    return [f"{error.json_path}: {error.message}" for error in errors]
