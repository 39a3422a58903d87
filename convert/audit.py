"""What was found in a source: the conversion report, as it is kept in `conversion.json`.

`conversion.schema.json`, beside this file, says what each entry is.
"""

import dataclasses
import importlib.metadata
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from convert.cautions import cautions
from convert.hub import Snapshot
from convert.recognize import Network
from convert.settings import trained_head_dim
from convert.source import Source
from convert.translate import flatten
from videomae_jax.config import VARIANTS, VideoMAEConfig
from videomae_jax.labels import Labels
from videomae_jax.model import ARCHITECTURES, abstract_params
from videomae_jax.processing import Preprocess

if TYPE_CHECKING:
    from convert.job import Request

REPORT_FORMAT = "videomae_jax/conversion/2"
PACKAGES = (
    "videomae-jax",
    "jax",
    "flax",
    "orbax-checkpoint",
    "numpy",
    "safetensors",
    "torch",
    "transformers",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
    """All that a report is made of. `files` are the digests of what was read."""

    source: Source
    network: Network
    params: Mapping[str, Any]
    request: "Request"
    preprocess: Preprocess
    preprocess_source: str
    labels: Labels | None
    labels_source: str
    files: Sequence[Mapping[str, Any]]


def report(findings: Findings) -> dict[str, Any]:
    """The conversion report, ready for JSON; verification and what is written come later."""
    source = findings.source
    content = {
        "format": REPORT_FORMAT,
        "source": {
            "path": str(source.path),
            "hub": _hub(findings.request.snapshot),
            "files": list(findings.files),
            "layout": findings.network.layout.name,
            "entry": source.entry,
            "ignored_entries": list(source.ignored_entries),
            "averaged_entry": source.averaged,
        },
        "network": _network(findings),
        "preprocessing": _preprocessing(findings),
        "labels": _labels(findings),
        "tensors": _tensors(findings),
        "statistics": _statistics(flatten(findings.params)),
        "versions": {name: _version(name) for name in PACKAGES},
        "verification": None,
        "written": [],
    }
    return content | {"warnings": cautions(content)}


def _hub(snapshot: Snapshot | None) -> dict[str, str] | None:
    return {"id": snapshot.repo_id, "revision": snapshot.revision} if snapshot else None


def _network(findings: Findings) -> dict[str, Any]:
    network = findings.network
    config = network.config
    eps = {"blocks": config.layer_norm_eps}
    if network.architecture == "VideoClassifier" and config.use_mean_pooling:
        eps["fc_norm"] = config.fc_norm_eps
    if network.architecture == "VideoPretrainer":
        eps["decoder.norm"] = config.decoder_norm_eps
    count = sum(leaf.size for leaf in flatten(findings.params).values())
    return {
        "architecture": network.architecture,
        "parameters": count,
        "nearest_variant": _nearest_variant(network.architecture, config),
        "heads": config.num_attention_heads,
        "head_dim": config.head_dim,
        "trained_head_dim": trained_head_dim(config.hidden_size),
        "layer_norm_eps": eps,
        "dtype": findings.request.dtype,
        "overrides": {name: _plain(value) for name, value in network.overrides.items()},
        "config": config.to_dict(),
    }


def _nearest_variant(architecture: str, config: VideoMAEConfig) -> dict[str, Any]:
    """The published size nearest to this one, and what it would count with the same head."""

    def blocks(sizes: VideoMAEConfig) -> float:
        return math.log(sizes.hidden_size**2 * sizes.num_hidden_layers)

    name = min(VARIANTS, key=lambda name: abs(blocks(VARIANTS[name]) - blocks(config)))
    same_head = dataclasses.replace(
        VARIANTS[name], num_labels=config.num_labels, use_mean_pooling=config.use_mean_pooling
    )
    leaves = flatten(abstract_params(ARCHITECTURES[architecture](same_head))).values()
    return {"name": name, "parameters": sum(math.prod(leaf.shape) for leaf in leaves)}


def _preprocessing(findings: Findings) -> dict[str, Any]:
    given = findings.preprocess
    original = Preprocess.original(findings.network.config.image_size)
    return {
        "source": findings.preprocess_source,
        "description": given.describe(),
        "original": original.describe(),
        "differs_in": [
            name
            for name in ("resize", "size", "crop_size", "image_mean", "image_std")
            if getattr(given, name) != getattr(original, name)
        ],
    }


def _labels(findings: Findings) -> dict[str, Any]:
    labels, chosen = findings.labels, findings.request.label_map
    return {
        "source": findings.labels_source,
        "count": len(labels) if labels is not None else 0,
        "label_map": chosen.name if chosen is not None else None,
    }


def _tensors(findings: Findings) -> dict[str, Any]:
    tensors, ignored = findings.source.tensors, findings.network.ignored
    # The plan is complete or the conversion fails: every other tensor has its place.
    return {
        "read": len(tensors),
        "mapped": len(tensors) - len(ignored),
        "ignored": [{"name": name, "reason": reason} for name, reason in ignored.items()],
        "dtypes": dict(Counter(tensor.dtype for tensor in tensors.values())),
    }


def _statistics(leaves: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Norms of the q and v biases, smallest and largest layer; ranges of the LayerNorms."""
    biases, norms = {}, {}
    for path, leaf in leaves.items():
        stem, _, last = path.rpartition("/")
        values = leaf.astype(np.float32, copy=False)
        if last in ("query_bias", "value_bias"):
            lengths = np.linalg.norm(values, axis=-1)
            biases[path] = _range(lengths)
        elif "norm" in stem.rpartition("/")[2]:
            norms.setdefault(stem, {})[last] = _range(values)
    return {"bias_norms": biases, "layer_norms": norms}


def _range(values: np.ndarray) -> list[float]:
    return [float(values.min()), float(values.max())]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
