"""The conversion report as lines for a terminal of 100 columns."""

import re
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

WIDTH, MARGIN = 100, 15
NO_BREAK = "\xa0"

Row = tuple[str, str]


def as_text(report: Mapping[str, Any]) -> str:
    """The report, one fact a row, warnings last, the head-count trap first of them.

    Paths and names are never broken, so that they can be copied.
    """
    rows = [*_source_rows(report["source"]), *_network_rows(report["network"])]
    rows += [*_other_rows(report), *_statistics_rows(report["statistics"]), *_last_rows(report)]
    lines = [f"{name:<{MARGIN}}{value}".rstrip() for name, value in rows]
    if report["warnings"]:
        lines.append("")
    for text in report["warnings"]:
        lines += _warning_lines(text)
    return "\n".join(lines)


def _source_rows(source: Mapping[str, Any]) -> Iterable[Row]:
    yield "source", source["path"] + (f" [{source['entry']}]" if source["entry"] else "")
    if source["hub"]:
        yield "hub", f"{source['hub']['id']}, revision {source['hub']['revision']}"
    yield "layout", source["layout"]
    yield from _under("files", _file_lines(source["files"]))
    left = [f"{entry['name']}: {entry['reason']}" for entry in source["ignored_entries"]]
    yield from _under("left out", left)


def _network_rows(network: Mapping[str, Any]) -> Iterable[Row]:
    config = network["config"]
    yield "architecture", network["architecture"]
    yield "parameters", _parameters(network)
    yield "width, layers", f"{config['hidden_size']}, {config['num_hidden_layers']}"
    yield "heads", _heads(network)
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
    overrides = (f"{name}={value}" for name, value in network["overrides"].items())
    yield from _under("overrides", _folded(", ".join(overrides)))


def _parameters(network: Mapping[str, Any]) -> str:
    count, nearest = network["parameters"], network["nearest_variant"]
    text = f"{count:,} in {network['dtype']}"
    if count == nearest["parameters"]:
        return f"{text}, as many as {nearest['name']}"
    return f"{text} (the nearest published size, {nearest['name']}, has {nearest['parameters']:,})"


def _heads(network: Mapping[str, Any]) -> str:
    trained, width = network["trained_head_dim"], network["config"]["hidden_size"]
    text = f"{network['heads']} of {network['head_dim']}"
    if trained in (None, network["head_dim"]):
        return text
    return f"{text} (!) where training had {width // trained} of {trained}: see the warning below"


def _options(config: Mapping[str, Any]) -> str:
    names = {
        "cos_attn": "cosine attention",
        "layer_scale_init_value": "layer scale",
        "use_learnable_pos_emb": "learnt positions",
    }
    return ", ".join(text for name, text in names.items() if config[name])


def _other_rows(report: Mapping[str, Any]) -> Iterable[Row]:
    preprocessing, labels, tensors = (
        report[name] for name in ("preprocessing", "labels", "tensors")
    )
    yield from _under("preprocessing", _folded(preprocessing["description"]))
    yield "", f"({preprocessing['source']})"
    if preprocessing["differs_in"]:
        yield from _under("original", _folded(preprocessing["original"]))
        yield from _under("", _folded(f"(other {', '.join(preprocessing['differs_in'])})"))
    chosen = f", rows of {labels['label_map']}" if labels["label_map"] else ""
    yield "labels", f"{labels['count']} ({labels['source']}{chosen})"
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in tensors["dtypes"].items())
    read = f"{tensors['read']} read, {tensors['mapped']} mapped"
    yield "tensors", f"{read}, {len(tensors['ignored'])} ignored; {dtypes}"
    for line in _ignored_lines(tensors["ignored"]):
        yield "", line


def _ignored_lines(ignored: Iterable[Mapping[str, str]]) -> Iterable[str]:
    names = defaultdict(list)
    for entry in ignored:
        names[entry["reason"]].append(entry["name"])
    for reason, (first, *others) in names.items():
        yield f"{first}{f' and {len(others)} more' if others else ''}: {reason}"


def _statistics_rows(statistics: Mapping[str, Any]) -> Iterable[Row]:
    biases, norms = statistics["bias_norms"], statistics["layer_norms"]
    if biases:
        yield "q/v biases", f"{'norm in a layer, smallest and largest':<40}"
    for path, (smallest, largest) in biases.items():
        yield "", f"{path:<40}{smallest:>10.3g}{largest:>10.3g}"
    if norms:
        yield "LayerNorms", f"{'smallest and largest':<40}{'scale':>19}{'bias':>23}"
    for path, parts in norms.items():
        ranges = (f"{low:>10.3g}{high:>10.3g}" for low, high in (parts["scale"], parts["bias"]))
        yield "", f"{path:<40}{'   '.join(ranges)}"


def _last_rows(report: Mapping[str, Any]) -> Iterable[Row]:
    """Versions, and of a finished conversion what came of it."""
    versions = (f"{name} {number or 'absent'}" for name, number in report["versions"].items())
    yield from _under("versions", _folded(", ".join(versions)))
    yield from _under("written", _file_lines(report["written"]))
    if figures := report["verification"]:
        worst = max(stage["relative_l2"] for stage in figures["stages"])
        verdict = "agrees" if figures["agrees"] else "DOES NOT AGREE"
        text = f"{verdict} with {figures['reference']}: relative L2 {worst:.1e} at most"
        yield from _under("verification", _folded(text))


def _file_lines(files: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names, sizes and the first digits of the digests, in columns."""
    names = max((len(file["name"]) for file in files), default=0)
    sizes = max((len(f"{file['bytes']:,}") for file in files), default=0)
    return [
        f"{file['name']:<{names}}  {file['bytes']:>{sizes},} bytes  sha256 {file['sha256'][:12]}"
        for file in files
    ]


def _under(name: str, lines: Iterable[str]) -> Iterable[Row]:
    """Rows of one name, which the first of them shows."""
    for line in lines:
        yield name, line
        name = ""


def _folded(text: str) -> list[str]:
    """A list in lines that fit beside the margin, broken after commas only."""
    unbroken = re.sub("(?<!,) ", NO_BREAK, text)
    lines = textwrap.wrap(unbroken, WIDTH - MARGIN, break_long_words=False, break_on_hyphens=False)
    return [line.replace(NO_BREAK, " ") for line in lines]


def _warning_lines(text: str) -> list[str]:
    start = "warning: "
    return textwrap.wrap(
        start + text,
        WIDTH,
        subsequent_indent=" " * len(start),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _by(size: Iterable[int]) -> str:
    return " x ".join(map(str, size))
