"""A conversion in order: open, recognize, translate, audit, verify, write."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from convert import audit
from convert.classes import class_names
from convert.digests import Digests, digest_files
from convert.errors import ConversionError
from convert.hub import Snapshot
from convert.json_file import read_json
from convert.label_map import read_label_map, take_rows
from convert.layouts import Layout
from convert.preprocessor import read_preprocessor
from convert.recognize import Network, find_layout, recognize
from convert.source import Source, open_source
from convert.translate import Progress, translate
from convert.weights import Choice
from videomae_jax import checkpoint
from videomae_jax.model import ARCHITECTURES, VideoModel, abstract_params
from videomae_jax.processing import Preprocess
from videomae_jax.weights import load_params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What a user asks for beside the source itself.

    `overrides` are config fields by name, `labels` a file of class names, one a line, `label_map`
    one of the rows of the head to take, `weights` "model" or "ema", `dtype` the parameters',
    `snapshot` what of the hub the source is.
    """

    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    labels: Path | None = None
    label_map: Path | None = None
    weights: Choice = "model"
    dtype: str = "float32"
    snapshot: Snapshot | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversion:
    """A source translated in memory, with what is to be written beside the weights."""

    source: Source
    network: Network
    model: VideoModel
    params: Mapping[str, Any]
    description: checkpoint.Description


def convert(
    source: str | os.PathLike, request: Request | None = None, *, progress: Progress = iter
) -> Conversion:
    """Read a source and translate it; writes nothing.

    Raises:
        ConversionError: with everything that is wrong with the source.
    """
    request = Request() if request is None else request
    opened = open_source(source, weights=request.weights)
    layout = find_layout(opened)
    with Digests(files_read(opened, layout, request)) as digests:
        overrides, rows, stored = dict(request.overrides), None, None
        if request.label_map is not None:
            rows = read_label_map(request.label_map)
            opened, stored = take_rows(opened, layout, rows, request.label_map)
            overrides["num_labels"] = len(rows)
        network = recognize(opened, layout, overrides)
        model, like = _model(opened, network)
        params = _translate(opened, network, like, request.dtype, progress)
        preprocess, preprocess_source = _preprocess(opened, network)
        # After the weights, which prove that there are as many classes as the config says.
        labels, labels_source = class_names(
            opened, network, request.labels, rows=rows, stored=stored
        )
        findings = audit.Findings(
            source=opened,
            network=network,
            params=params,
            request=request,
            preprocess=preprocess,
            preprocess_source=preprocess_source,
            labels=labels,
            labels_source=labels_source,
            files=digests.results(),
        )
    return Conversion(
        source=opened,
        network=network,
        model=model,
        params=params,
        description=checkpoint.Description(
            architecture=network.architecture,
            config=network.config,
            dtype=request.dtype,
            preprocess=preprocess,
            labels=labels,
            conversion=audit.report(findings),
        ),
    )


def files_read(source: Source, layout: Layout, request: Request) -> list[Path]:
    """Every file that a conversion reads."""
    beside = (*source.files[0].parent.glob("*.index.json"),) if len(source.files) > 1 else ()
    settings = [request.labels, request.label_map]
    if layout.settings:
        settings += [source.config_file, source.preprocessor_file]
    found = (path for path in settings if path is not None and path.is_file())
    return [*source.files, *beside, *found]


def _model(source: Source, network: Network) -> tuple[VideoModel, dict[str, Any]]:
    try:
        model = ARCHITECTURES[network.architecture](network.config)
        return model, abstract_params(model)
    # Sizes that are too large for a network, or for this machine, fail where they are used first.
    except (ValueError, TypeError, OverflowError, MemoryError) as error:
        raise ConversionError(
            f"{source.path}: no network can have these sizes ({error})"
        ) from error


def _translate(
    source: Source, network: Network, like: Mapping[str, Any], dtype: str, progress: Progress
) -> dict[str, Any]:
    tensors = {n: tensor for n, tensor in source.tensors.items() if n not in network.ignored}
    try:
        return translate(
            tensors, network.layout, like, dtype=checkpoint.DTYPES[dtype], progress=progress
        )
    except ConversionError as error:
        problems = (f"{source.path}: {problem}" for problem in error.problems)
        raise ConversionError(*problems) from error


def _preprocess(source: Source, network: Network) -> tuple[Preprocess, str]:
    size, channels = network.config.image_size, network.config.num_channels
    file = source.preprocessor_file if network.layout.settings else None
    if file is None:
        if network.layout.settings == "transformers":
            return Preprocess.default(size), "assumed"
        return Preprocess.original(size), "the original code's evaluation"
    try:
        preprocess = read_preprocessor(read_json(file))
        preprocess.check_fits(size, channels)
    except ConversionError:
        raise
    except ValueError as error:
        raise ConversionError(f"{file}: {error}") from error
    return preprocess, file.name


def write(
    conversion: Conversion,
    out: str | os.PathLike,
    *,
    prove: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
) -> None:
    """Write the converted directory; `prove` is called with the weights as read back from it.

    What `prove` returns is added to the conversion report, as are the digests of the files that
    were written. If it raises, nothing is written.

    Raises:
        CheckpointError: if `out` exists.
    """

    def prove_written(folder: Path) -> Mapping[str, Any]:
        written = {"written": digest_files(_files_below(folder), relative_to=folder)}
        if prove is None:
            return written
        like = abstract_params(conversion.model, conversion.description.dtype)
        return written | dict(prove(load_params(folder, like)))

    checkpoint.save(out, conversion.params, conversion.description, prove=prove_written)


def _files_below(folder: Path) -> Sequence[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
