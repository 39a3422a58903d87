"""The names of a network's classes: from a file that the user names, config.json, or none."""

import os
from collections.abc import Sequence
from pathlib import Path

from convert.errors import ConversionError
from convert.recognize import Network
from convert.source import Source
from videomae_jax.labels import Labels


def class_names(
    source: Source,
    network: Network,
    path: str | os.PathLike | None,
    rows: Sequence[int] | None,
) -> tuple[Labels | None, str]:
    """The names and where they are from; no names for a network without classes.

    `path` is a file of names, one a line; `rows` are the rows of the stored head that were taken.
    Either the names of the rows taken or those of all stored rows will do.

    Raises:
        ConversionError: if names can't be read or aren't as many as the classes.
    """
    count = network.config.num_labels
    if network.architecture != "VideoClassifier" or count == 0:
        if path is not None:
            raise ConversionError(f"{path}: {source.path} has no classes to name")
        return None, "no classes"
    if path is not None:
        try:
            labels = Labels.read(path)
        except ValueError as error:
            raise ConversionError(str(error)) from error
        if rows is not None and len(labels) != count:
            labels = _names_of_rows(labels, rows)
        if len(labels) != count:
            raise ConversionError(f"{path}: names {len(labels)} classes, {source.path} has {count}")
        return labels, Path(path).name
    if network.layout.settings == "transformers" and source.config.get("id2label"):
        try:
            labels = Labels.from_hf(source.config)
        except ValueError as error:
            raise ConversionError(f"{source.config_file}: {error}") from error
        return _names_of_rows(labels, rows), source.config_file.name
    return Labels.numbered(count), "assumed"


def _names_of_rows(labels: Labels, rows: Sequence[int] | None) -> Labels:
    if rows is None or max(rows) >= len(labels):
        return labels
    return Labels(tuple(labels.names[row] for row in rows))
