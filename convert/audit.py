"""What was found in a source: the conversion report, as JSON and as text."""

import importlib.metadata
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from convert.recognize import HEAD_DIMS, Network
from convert.source import Source
from videomae_jax.config import VideoMAEConfig
from videomae_jax.labels import Labels
from videomae_jax.processing import Preprocess

REPORT_FORMAT = "videomae_jax/conversion/1"
PACKAGES = ("videomae-jax", "jax", "flax", "orbax-checkpoint", "numpy", "safetensors")


def report(
    source: Source,
    network: Network,
    *,
    preprocess: Preprocess,
    preprocess_source: str,
    labels: Labels | None,
    labels_source: str,
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, Any]:
    """The conversion report, ready for JSON. Says nothing of verification, which comes later."""
    config = network.config
    return {
        "format": REPORT_FORMAT,
        "source": {
            "path": str(source.path),
            "files": [file.name for file in source.files],
            "layout": network.layout.name,
            "entry": source.entry,
            "ignored_entries": list(source.ignored_entries),
        },
        "network": {
            "architecture": network.architecture,
            "parameters": sum(math.prod(shape) for shape in shapes.values()),
            "heads": config.num_attention_heads,
            "head_dim": config.head_dim,
            "overrides": {name: _plain(value) for name, value in network.overrides.items()},
            "config": config.to_dict(),
        },
        "preprocessing": {
            "source": preprocess_source,
            "description": preprocess.describe(),
        },
        "labels": {"source": labels_source, "count": len(labels) if labels is not None else 0},
        # The plan is complete or the conversion fails: every tensor read has its place.
        "tensors": {
            "read": len(source.tensors),
            "mapped": len(source.tensors),
            "unused": 0,
            "dtypes": dict(Counter(tensor.dtype for tensor in source.tensors.values())),
        },
        "warnings": warnings(network, source, preprocess_source, labels_source),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def warnings(
    network: Network, source: Source, preprocess_source: str, labels_source: str
) -> list[str]:
    """What a user should know before trusting the result, a sentence or two each."""
    found = []
    if (heads := head_warning(network.config)) is not None:
        found.append(heads)
    if preprocess_source == "assumed":
        found.append(
            "No preprocessor_config.json: preprocessing is assumed. A wrong mean or resize rule "
            "costs accuracy without a word."
        )
    if labels_source == "assumed":
        found.append("No class names: LABEL_0, LABEL_1, ... are used. Say --labels FILE.")
    if not network.layout.has_config and (assumed := assumptions(network)):
        found.append(f"The file doesn't tell, so these are assumed: {', '.join(assumed)}.")
    return found


def head_warning(config: VideoMAEConfig) -> str | None:
    """The head-count trap, if the config has other heads than the published models that wide."""
    trained = HEAD_DIMS.get(config.hidden_size, config.head_dim)
    if config.head_dim == trained:
        return None
    heads = config.hidden_size // trained
    text = (
        f"{config.num_attention_heads} heads of {config.head_dim}: models {config.hidden_size} "
        f"wide were trained by the original code with {heads} heads of {trained}. "
    )
    if config.hidden_size == 384:
        text += (
            f"The published config of the small models says 16, which is how transformers "
            f"runs them; the published accuracy most likely means {heads}. "
        )
    return f"{text}Convert again with --num-heads {heads} and compare."


def assumptions(network: Network) -> list[str]:
    """What neither the file nor the user said, each with the option that says it."""
    config = network.config
    said = {
        "num_attention_heads": f"{config.num_attention_heads} heads of {config.head_dim} "
        f"(--num-heads)",
        "image_size": f"{_by(config.image_size)} pixels (--image-size)",
        "num_frames": f"{config.num_frames} frames (--num-frames)",
    }
    if network.architecture == "VideoPretrainer":
        heads = f"{config.decoder_num_attention_heads} decoder heads (--decoder-num-heads)"
        said["decoder_num_attention_heads"] = heads
    return [text for field, text in said.items() if field not in network.overrides]


def as_text(report: Mapping[str, Any]) -> str:
    """The report as lines for a terminal."""
    source, network, tensors = report["source"], report["network"], report["tensors"]
    config = network["config"]
    rows = [
        ("source", source["path"] + (f" [{source['entry']}]" if source["entry"] else "")),
        ("layout", source["layout"]),
        ("architecture", f"{network['architecture']}, {network['parameters']:,} parameters"),
        ("width, layers", f"{config['hidden_size']}, {config['num_hidden_layers']}"),
        ("heads", f"{network['heads']} of {network['head_dim']}"),
        *_decoder_row(network["architecture"], config),
        (
            "clip",
            f"{config['num_frames']} frames of {_by(config['image_size'])}, "
            f"{config['num_channels']} channels, tubelets of "
            f"{_by([config['tubelet_size'], *config['patch_size']])}",
        ),
        ("LayerNorm eps", _eps(network["architecture"], config)),
        ("preprocessing", f"{report['preprocessing']['description']}"),
        ("", f"({report['preprocessing']['source']})"),
        ("labels", f"{report['labels']['count']} ({report['labels']['source']})"),
        (
            "tensors",
            f"{tensors['read']} read, {tensors['mapped']} mapped, {tensors['unused']} unused; "
            + ", ".join(f"{count} {dtype}" for dtype, count in tensors["dtypes"].items()),
        ),
    ]
    if source["ignored_entries"]:
        rows.append(("ignored", ", ".join(source["ignored_entries"])))
    if network["overrides"]:
        rows.append(("overrides", ", ".join(f"{k}={v}" for k, v in network["overrides"].items())))
    lines = [f"{name:<15}{value}" for name, value in rows]
    return "\n".join(lines + [f"warning: {text}" for text in report["warnings"]])


def _eps(architecture: str, config: Mapping[str, Any]) -> str:
    norms = [f"{config['layer_norm_eps']:g} blocks"]
    if architecture == "VideoClassifier" and config["use_mean_pooling"]:
        norms.append(f"{config['fc_norm_eps']:g} fc_norm")
    if architecture == "VideoPretrainer":
        norms.append(f"{config['decoder_norm_eps']:g} decoder norm")
    return ", ".join(norms)


def _decoder_row(architecture: str, config: Mapping[str, Any]) -> list[tuple[str, str]]:
    if architecture != "VideoPretrainer":
        return []
    width, heads = config["decoder_hidden_size"], config["decoder_num_attention_heads"]
    layers = config["decoder_num_hidden_layers"]
    return [("decoder", f"{width} wide, {layers} layers, {heads} heads of {width // heads}")]


def _by(size) -> str:
    return " x ".join(map(str, size))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
