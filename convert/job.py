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
from convert.source import Source, open_source, read_json
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
    try:
        model = ARCHITECTURES[network.architecture](network.config)
        like = abstract_params(model)
    # Sizes that are too large for a network, or for this machine, fail where they are used first.
    except (ValueError, OverflowError, MemoryError) as error:
        raise ConversionError(f"{source}: no network can have these sizes ({error})") from error
    try:
        params = translate(opened.tensors, network.layout, like)
    except ConversionError as error:
        raise ConversionError(*(f"{source}: {problem}" for problem in error.problems)) from error
    preprocess, preprocess_source = _preprocess(opened, network)
    # After the weights, which prove that there are as many classes as the config says.
    names, labels_source = _labels(opened, network, labels)
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
    if not network.layout.has_config:
        return Preprocess.original(size), "the original code's evaluation"
    file = source.preprocessor_file
    if file is None:
        return Preprocess.default(size), "assumed"
    try:
        preprocess = read_preprocessor(read_json(file))
        preprocess.check_fits(size, channels)
    except ConversionError:
        raise
    except ValueError as error:
        raise ConversionError(f"{file}: {error}") from error
    return preprocess, file.name


def _labels(
    source: Source, network: Network, path: str | os.PathLike | None
) -> tuple[Labels | None, str]:
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
        if len(labels) != count:
            raise ConversionError(f"{path}: names {len(labels)} classes, {source.path} has {count}")
        return labels, Path(path).name
    if network.layout.has_config and source.config.get("id2label"):
        try:
            return Labels.from_hf(source.config), source.config_file.name
        except ValueError as error:
            raise ConversionError(f"{source.config_file}: {error}") from error
    return Labels.numbered(count), "assumed"


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

    def prove_written(folder: Path) -> Mapping[str, Any]:
        if prove is None:
            return {}
        return prove(checkpoint.load_params(folder, abstract_params(conversion.model)))

    checkpoint.save(out, conversion.params, conversion.description, prove=prove_written)
