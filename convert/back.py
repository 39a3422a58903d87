"""The way back: a converted directory -> a checkpoint for PyTorch, by the same tables.

`huggingface` is a folder that transformers loads, `original` a `.pth` file for the original code
and what grew from it.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from convert import job
from convert.digests import digest_files
from convert.errors import ConversionError
from convert.layouts import HUGGING_FACE, ORIGINAL, Layout, Rule
from convert.pytorch_files import compare, save_safetensors, save_torch
from convert.source import open_source
from convert.translate import flatten, target_path, view
from videomae_jax import checkpoint
from videomae_jax.config import VideoMAEConfig
from videomae_jax.model import ARCHITECTURES, abstract_params
from videomae_jax.weights import load_params
from videomae_jax.writing import new_directory, new_file, write_json

TARGETS = {"huggingface": HUGGING_FACE, "original": ORIGINAL}

BACK_FORMAT = "videomae_jax/back/1"

HUGGING_FACE_CLASSES = {
    "VideoEncoder": "VideoMAEModel",
    "VideoClassifier": "VideoMAEForVideoClassification",
    "VideoPretrainer": "VideoMAEForPreTraining",
}

# A tensor of the file to be: its name, and how to make it.
Piece = tuple[str, Callable[[], np.ndarray]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """A converted directory read into memory, and what it is to become.

    `params` are NumPy arrays in `dtype`, `pieces` the tensors of the file to be, in its order.
    """

    directory: Path
    layout: Layout
    description: checkpoint.Description
    dtype: str
    params: Mapping[str, Any]
    pieces: tuple[Piece, ...]


def read(directory: str | os.PathLike, to: str, *, dtype: str | None = None) -> Export:
    """Read a converted directory for a way back; `to` is one of `TARGETS`.

    `dtype` is that of the file; None: of the directory.

    Raises:
        CheckpointError: if the directory can't be read.
        ConversionError: with everything that the target has no place for.
    """
    description = checkpoint.load_description(directory)
    layout, config = TARGETS[to], description.config
    refuse_what_is_lost(description, layout)
    model = ARCHITECTURES[description.architecture](config)
    like = abstract_params(model, description.dtype)
    params = jax.tree.map(np.asarray, load_params(directory, like))
    dtype = description.dtype if dtype is None else dtype
    return Export(
        directory=Path(directory),
        layout=layout,
        description=description,
        dtype=dtype,
        params=params,
        pieces=tuple(pieces(params, layout, description.architecture, config)),
    )


def refuse_what_is_lost(description: checkpoint.Description, layout: Layout) -> None:
    """Raise ConversionError for what the target can't compute, each by its config field."""
    config, problems = description.config, []
    if layout is HUGGING_FACE:
        beyond = ("cos_attn", "layer_scale_init_value", "use_learnable_pos_emb")
        problems += [
            f"transformers' VideoMAE has no {name}; --to original keeps it"
            for name in beyond
            if getattr(config, name)
        ]
    elif config.hidden_act != "gelu":
        problems.append(f"the original code has no hidden_act but gelu, got {config.hidden_act}")
    if problems:
        raise ConversionError(*problems)


def pieces(
    params: Mapping[str, Any], layout: Layout, architecture: str, config: VideoMAEConfig
) -> Iterator[Piece]:
    """Every tensor that the layout has for a parameter tree, in the order of its table.

    Raises:
        ConversionError: if the layout has no place for a parameter.
    """
    leaves = flatten(params)
    chosen: dict[tuple[str, str | None], Rule] = {}
    for rule in layout.rules:
        if target_path(rule, leaves) in leaves:
            # The first name that a table has for a place is the one to write.
            chosen.setdefault((rule.target, rule.part), rule)
    rules = list(chosen.values())
    homeless = set(leaves) - {target_path(rule, leaves) for rule in rules}
    if homeless:
        names = ", ".join(sorted(homeless))
        raise ConversionError(f"{layout.name} files have no place for {names}")
    while rules:
        stem = rules[0].pattern.partition("{n}")[0]
        together = [rule for rule in rules if rules[0].stacked and rule.pattern.startswith(stem)]
        together = together or rules[:1]
        rules = [rule for rule in rules if rule not in together]
        count = len(leaves[target_path(together[0], leaves)]) if together[0].stacked else 1
        for layer in range(count):
            for rule in together:
                yield _piece(
                    rule, layer, leaves, layout.encoder_prefix.get(architecture, ""), config
                )


def _piece(
    rule: Rule, layer: int, leaves: Mapping[str, np.ndarray], prefix: str, config: VideoMAEConfig
) -> Piece:
    in_encoder = rule.target.startswith("encoder/")
    name = (prefix if in_encoder else "") + rule.pattern.replace("{n}", str(layer))
    slot = (target_path(rule, leaves), layer if rule.stacked else None, rule.part)
    return name, lambda: rule.change.back(view(leaves, slot), config)


def cautions(export: Export) -> list[str]:
    """What the target does otherwise, each in a sentence."""
    description, found = export.description, []
    config = description.config
    eps = {"blocks": config.layer_norm_eps}
    if description.architecture == "VideoClassifier" and config.use_mean_pooling:
        eps["fc_norm"] = config.fc_norm_eps
    if description.architecture == "VideoPretrainer":
        eps["decoder.norm"] = config.decoder_norm_eps
    if export.layout is HUGGING_FACE:
        theirs = {"blocks": config.layer_norm_eps, "fc_norm": 1e-5, "decoder.norm": 1e-5}
        if description.preprocess.resize != "pil":
            found.append(
                "transformers' processors resize with antialiasing, this model's preprocessing "
                "without: frames differ by some grey levels."
            )
    else:
        theirs = dict.fromkeys(eps, 1e-6)
        found.append(
            f"The file can't tell: {config.num_attention_heads} heads, "
            f"{' x '.join(map(str, config.image_size))} pixels, {config.num_frames} frames, the "
            f"preprocessing and the class names. Build the model with these."
        )
    found += [
        f"LayerNorm eps of {name} is {value:g} here and {theirs[name]:g} there."
        for name, value in eps.items()
        if value != theirs[name]
    ]
    return found


def write(
    export: Export,
    out: str | os.PathLike,
    *,
    progress: Callable[[list[Piece]], Iterable[Piece]] = iter,
    prove: Callable[[Path], Mapping[str, Any]] | None = None,
) -> None:
    """Write the folder or file, whole or not at all; `prove` gets it before it has its name.

    Every tensor is read back and compared, bit for bit.

    Raises:
        CheckpointError: if `out` exists or can't be written.
        ConversionError: if a value is too large for the dtype, or what is read back differs.
    """
    tensors = dict(_contiguous(export, progress))
    if export.layout is ORIGINAL:
        with new_file(out) as file:
            save_torch(tensors, file)
            compare(open_source(file), tensors)
            if prove is not None:
                prove(file)
        return
    with new_directory(out) as folder:
        save_safetensors(tensors, folder / "model.safetensors")
        write_json(folder / "preprocessor_config.json", hugging_face_preprocessor(export))
        write_json(folder / "config.json", hugging_face_config(export))
        compare(open_source(folder), tensors)
        content = _report(export, sorted(folder.iterdir()))
        if prove is not None:
            content |= prove(folder)
        write_json(folder / "conversion.json", content)


def reopen(export: Export, written: Path) -> job.Conversion:
    """What was written, converted again: its weights and config as any reader would take them."""
    config = export.description.config
    said = {}
    if export.layout is ORIGINAL:
        fields = ["num_attention_heads", "image_size", "num_frames"]
        if export.description.architecture == "VideoPretrainer":
            fields.append("decoder_num_attention_heads")
        said = {name: getattr(config, name) for name in fields}
    return job.convert(written, job.Request(overrides=said, dtype=export.dtype))


def rounded(export: Export) -> Any:
    """The parameters in the dtype of the file."""
    dtype = checkpoint.DTYPES[export.dtype]
    return jax.tree.map(lambda leaf: leaf.astype(dtype, copy=False), export.params)


def _report(export: Export, written: list[Path]) -> dict[str, Any]:
    read = [path for path in sorted(export.directory.rglob("*")) if path.is_file()]
    return {
        "format": BACK_FORMAT,
        "source": {
            "path": str(export.directory),
            "files": digest_files(read, relative_to=export.directory),
        },
        "to": export.layout.name,
        "dtype": export.dtype,
        "warnings": cautions(export),
        "verification": None,
        "written": digest_files(written),
    }


def hugging_face_config(export: Export) -> dict[str, Any]:
    """The contents of config.json, with the names of the classes."""
    description = export.description
    fields = description.config.to_hf()
    if description.architecture == "VideoClassifier":
        names = description.labels.names if description.labels is not None else ()
        del fields["num_labels"]
        fields["id2label"] = {str(index): name for index, name in enumerate(names)}
        fields["label2id"] = {name: index for index, name in enumerate(names)}
    head = {
        "architectures": [HUGGING_FACE_CLASSES[description.architecture]],
        "dtype": export.dtype,
    }
    return head | fields


def hugging_face_preprocessor(export: Export) -> dict[str, Any]:
    """The contents of preprocessor_config.json."""
    fields = export.description.preprocess.to_dict()
    del fields["resize"]
    channels = export.description.config.num_channels
    for name in ("image_mean", "image_std"):
        if not isinstance(fields[name], list):
            fields[name] = [fields[name]] * channels
    return {"image_processor_type": "VideoMAEImageProcessor"} | fields


def _contiguous(export: Export, progress: Callable) -> Iterator[tuple[str, np.ndarray]]:
    dtype = checkpoint.DTYPES[export.dtype]
    too_large = []
    for name, make in progress(list(export.pieces)):
        given = make()
        with np.errstate(over="ignore"):
            values = np.ascontiguousarray(given.astype(dtype, copy=False))
        if not np.isfinite(values).all() and np.isfinite(given).all():
            too_large.append(f"{name} is too large for {export.dtype}")
        yield name, values
    if too_large:
        raise ConversionError(*too_large)


def as_text(export: Export) -> str:
    """What is going to be written, as lines for a terminal."""
    description = export.description
    size = sum(leaf.size for leaf in flatten(export.params).values())
    rows = [
        ("source", str(export.directory)),
        ("to", export.layout.about),
        ("architecture", f"{description.architecture}, {size:,} parameters"),
        ("tensors", f"{len(export.pieces)}, {export.dtype}"),
    ]
    lines = [f"{name:<15}{value}" for name, value in rows]
    return "\n".join(lines + [f"warning: {text}" for text in cautions(export)])
