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
    *,
    rows: Sequence[int] | None = None,
    stored: int | None = None,
) -> tuple[Labels | None, str]:
    """The names and where they are from; no names for a network without classes.

    `path` is a file of names, one a line; `rows` are the rows that were taken of a head with
    `stored` of them. Either the names of the rows taken or those of all stored rows will do.

    Raises:
        ConversionError: if names can't be read or aren't as many as the classes.
    """
    count = network.config.num_labels
    if network.architecture != "VideoClassifier" or count == 0:
        if path is not None:
            raise ConversionError(f"{path}: {source.path} has no classes to name")
        return None, "no classes"
    if path is None and not (
        network.layout.settings == "transformers" and source.config.get("id2label")
    ):
        return Labels.numbered(count), "assumed"
    where = source.config_file if path is None else Path(path)
    try:
        labels = Labels.from_hf(source.config) if path is None else Labels.read(path)
    except ValueError as error:
        # What is read of a file names it.
        raise ConversionError(f"{where}: {error}" if path is None else str(error)) from error
    if rows is not None and len(labels) == stored and (path is None or stored != count):
        labels = Labels(tuple(labels.names[row] for row in rows))
    elif len(labels) != count:
        wanted = f"{count}" if stored is None else f"{count} of {stored}"
        raise ConversionError(f"{where}: names {len(labels)} classes, {source.path} has {wanted}")
    return labels, where.name
