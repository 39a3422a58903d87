"""The conversion report as lines for a terminal."""

from collections.abc import Iterable, Mapping
from typing import Any


def as_text(report: Mapping[str, Any]) -> str:
    """The report, one fact a line, warnings last."""
    rows = [*_source_rows(report), *_network_rows(report["network"]), *_other_rows(report)]
    lines = [f"{name:<15}{value}" for name, value in rows]
    return "\n".join(lines + [f"warning: {text}" for text in report["warnings"]])


def _source_rows(report: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    source = report["source"]
    yield "source", source["path"] + (f" [{source['entry']}]" if source["entry"] else "")
    yield "layout", source["layout"]
    if source["hub"]:
        yield "hub", f"{source['hub']['id']}, revision {source['hub']['revision']}"
    for file in source["files"]:
        yield "file", f"{file['name']}, {file['bytes']:,} bytes, sha256 {file['sha256'][:16]}"
    if source["ignored_entries"]:
        yield "ignored", ", ".join(source["ignored_entries"])


def _network_rows(network: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    config = network["config"]
    yield "architecture", f"{network['architecture']}, {_parameters(network)}"
    yield "width, layers", f"{config['hidden_size']}, {config['num_hidden_layers']}"
    yield "heads", f"{network['heads']} of {network['head_dim']}"
    if options := _options(config):
        yield "options", options
    if network["architecture"] == "VideoPretrainer":
        width, heads = config["decoder_hidden_size"], config["decoder_num_attention_heads"]
        layers = config["decoder_num_hidden_layers"]
        yield "decoder", f"{width} wide, {layers} layers, {heads} heads of {width // heads}"
    yield (
        "clip",
        f"{config['num_frames']} frames of {_by(config['image_size'])}, "
        f"{config['num_channels']} channels, tubelets of "
        f"{_by([config['tubelet_size'], *config['patch_size']])}",
    )
    eps = (f"{value:g} {name}" for name, value in network["layer_norm_eps"].items())
    yield "LayerNorm eps", ", ".join(eps)
    if network["dtype"] != "float32":
        yield "stored as", network["dtype"]
    if network["overrides"]:
        yield "overrides", ", ".join(f"{k}={v}" for k, v in network["overrides"].items())


def _parameters(network: Mapping[str, Any]) -> str:
    count, nearest = network["parameters"], network["nearest_variant"]
    if count == nearest["parameters"]:
        return f"{count:,} parameters, as {nearest['name']}"
    return f"{count:,} parameters (nearest: {nearest['name']}, {nearest['parameters']:,})"


def _options(config: Mapping[str, Any]) -> str:
    names = {
        "cos_attn": "cosine attention",
        "layer_scale_init_value": "layer scale",
        "use_learnable_pos_emb": "learnt positions",
    }
    return ", ".join(text for name, text in names.items() if config[name])


def _other_rows(report: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    preprocessing, labels, tensors = (
        report[name] for name in ("preprocessing", "labels", "tensors")
    )
    yield "preprocessing", preprocessing["description"]
    yield "", f"({preprocessing['source']})"
    if preprocessing["differs_in"]:
        yield "original", preprocessing["original"]
    chosen = f", rows of {labels['label_map']}" if labels["label_map"] else ""
    yield "labels", f"{labels['count']} ({labels['source']}{chosen})"
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in tensors["dtypes"].items())
    yield (
        "tensors",
        f"{tensors['read']} read, {tensors['mapped']} mapped, {len(tensors['ignored'])} ignored; "
        f"{dtypes}",
    )
    for entry in tensors["ignored"]:
        yield "", f"{entry['name']}: {entry['reason']}"
    for name, (smallest, largest) in report["statistics"]["bias_norms"].items():
        yield "", f"{name}: norm {smallest:.3g} to {largest:.3g} a layer"
    for name, ranges in report["statistics"]["layer_norms"].items():
        spelled = ", ".join(
            f"{part} {low:.3g} to {high:.3g}" for part, (low, high) in ranges.items()
        )
        yield "", f"{name}: {spelled}"


def _by(size: Iterable[int]) -> str:
    return " x ".join(map(str, size))
