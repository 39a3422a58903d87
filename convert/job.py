"""A conversion in order: open, recognize, translate, audit, verify, write."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from convert import audit
from convert.errors import ConversionError
from convert.preprocessor import read_preprocessor
from convert.recognize import Network, recognize
from convert.source import Source, open_source
from convert.translate import flatten, translate
from videomae_jax import checkpoint
from videomae_jax.labels import Labels
from videomae_jax.model import ARCHITECTURES, VideoModel, abstract_params
from videomae_jax.processing import Preprocess


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversion:
    """A source translated in memory, with what is to be written beside the weights."""

    source: Source
    network: Network
    model: VideoModel
    params: Mapping[str, Any]
    description: checkpoint.Description


def convert(
    source: str | os.PathLike,
    *,
    overrides: Mapping[str, Any] | None = None,
    labels: str | os.PathLike | None = None,
) -> Conversion:
    """Read a source and translate it; writes nothing.

    `overrides` are config fields by name, `labels` a file of class names, one a line.

    Raises:
        ConversionError: with everything that is wrong with the source.
    """
    opened = open_source(source)
    network = recognize(opened, overrides or {})
    preprocess, preprocess_source = _preprocess(opened, network)
    names, labels_source = _labels(opened, network, labels)
    try:
        model = ARCHITECTURES[network.architecture](network.config)
        like = abstract_params(model)
    except ValueError as error:
        raise ConversionError(f"{source}: {error}") from error
    try:
        params = translate(opened.tensors, network.layout, like)
    except ConversionError as error:
        raise ConversionError(*(f"{source}: {problem}" for problem in error.problems)) from error
    report = audit.report(
        opened,
        network,
        preprocess=preprocess,
        preprocess_source=preprocess_source,
        labels=names,
        labels_source=labels_source,
        shapes={path: leaf.shape for path, leaf in flatten(like).items()},
    )
    return Conversion(
        source=opened,
        network=network,
        model=model,
        params=params,
        description=checkpoint.Description(
            architecture=network.architecture,
            config=network.config,
            preprocess=preprocess,
            labels=names,
            conversion=report,
        ),
    )


def _preprocess(source: Source, network: Network) -> tuple[Preprocess, str]:
    size, channels = network.config.image_size, network.config.num_channels
    where = source.path
    try:
        if not network.layout.has_config:
            return Preprocess.original(size), "the original code's evaluation"
        if source.preprocessor is None:
            return Preprocess.default(size), "assumed"
        where = source.path / "preprocessor_config.json"
        preprocess = read_preprocessor(source.preprocessor)
        preprocess.check_fits(size, channels)
    except ValueError as error:
        raise ConversionError(f"{where}: {error}") from error
    return preprocess, "preprocessor_config.json"


def _labels(
    source: Source, network: Network, path: str | os.PathLike | None
) -> tuple[Labels | None, str]:
    count = network.config.num_labels
    if network.architecture != "VideoClassifier" or count == 0:
        if path is not None:
            raise ConversionError(f"{path}: {source.path} has no classes to name")
        return None, "no classes"
    try:
        if path is not None:
            labels, where = Labels.read(path), f"{Path(path).name}"
        elif (
            source.config is not None
            and source.config.get("id2label")
            and network.layout.has_config
        ):
            labels, where = Labels.from_hf(source.config), "config.json"
        else:
            return Labels.numbered(count), "assumed"
    except ValueError as error:
        raise ConversionError(f"{path or source.path}: {error}") from error
    if len(labels) != count:
        raise ConversionError(f"{path}: names {len(labels)} classes, {source.path} has {count}")
    return labels, where


def write(
    conversion: Conversion,
    out: str | os.PathLike,
    *,
    prove: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
) -> None:
    """Write the converted directory; `prove` is called with the weights as read back from it.

    What `prove` returns is added to the conversion report. If it raises, nothing is written.

    Raises:
        CheckpointError: if `out` exists.
    """
    like = abstract_params(conversion.model)

    def prove_written(folder: Path) -> Mapping[str, Any]:
        return prove(checkpoint.load_params(folder, like))

    checkpoint.save(
        out,
        conversion.params,
        conversion.description,
        prove=None if prove is None else prove_written,
    )
