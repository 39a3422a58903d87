"""What was found in a source: the conversion report, as it is kept in `conversion.json`.

`conversion.schema.json`, beside this file, says what each entry is.
"""

import dataclasses
import importlib.metadata
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import videomae_jax
from convert.cautions import cautions
from convert.hub import Snapshot
from convert.recognize import Network
from convert.settings import HEAD_DIMS, POSITIONS
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
    "jax",
    "flax",
    "orbax-checkpoint",
    "numpy",
    "safetensors",
    "torch",
    "transformers",
)

# Why what lies beside the weights in a torch file is left, by the beginning of its name.
BESIDE = (
    (r"optim", "the optimizer's state, for training on"),
    (r"(lr_|loss_)?(scheduler|scaler)|amp", "the training loop's state, for training on"),
    (r"epoch|iter|step|global_s|skipped_s|micro_s|max_acc|best", "how far training had come"),
    (r"args|arg_|cfg|config|meta|hyper|ds_", "the settings of the training run"),
    (r"model$|module$|state_dict$", "the weights of the last step, not averaged"),
    (r"message_hub|callbacks|loops|pytorch-lightning", "the training framework's own records"),
)
NOT_WEIGHTS = "no weights of this network"

# What a network is told that no shape shows; `model_config` of VideoMAE V2 has other names for it.
UNSEEN = {
    "num_attention_heads": ("num_heads",),
    "image_size": ("img_size",),
    "num_frames": ("num_frames", "all_frames"),
}


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
            "ignored_entries": [
                {"name": name, "reason": _why_left(name, source)} for name in source.ignored_entries
            ],
            "averaged_entry": source.averaged,
        },
        "network": _network(findings),
        "preprocessing": _preprocessing(findings),
        "labels": _labels(findings),
        "tensors": _tensors(findings),
        "statistics": _statistics(flatten(findings.params)),
        "versions": {"videomae-jax": videomae_jax.__version__}
        | {name: _version(name) for name in PACKAGES},
        "verification": None,
        "written": [],
    }
    return content | {"warnings": cautions(content)}


def _hub(snapshot: Snapshot | None) -> dict[str, str] | None:
    return {"id": snapshot.repo_id, "revision": snapshot.revision} if snapshot else None


def _why_left(name: str, source: Source) -> str:
    if name == source.averaged:
        return "averaged weights; --weights ema takes them"
    found = (reason for pattern, reason in BESIDE if re.match(pattern, name, re.IGNORECASE))
    return next(found, NOT_WEIGHTS)


def _network(findings: Findings) -> dict[str, Any]:
    network = findings.network
    config = network.config
    count = sum(leaf.size for leaf in flatten(findings.params).values())
    return {
        "architecture": network.architecture,
        "parameters": count,
        "nearest_variant": nearest_variant(network.architecture, config),
        "heads": config.num_attention_heads,
        "head_dim": config.head_dim,
        "trained_head_dim": HEAD_DIMS.get(config.hidden_size),
        "layer_norm_eps": _eps(network.architecture, config),
        "dtype": findings.request.dtype,
        "assumed": _assumed(findings),
        "overrides": {name: _plain(value) for name, value in network.overrides.items()},
        "config": config.to_dict(),
    }


def _eps(architecture: str, config: VideoMAEConfig) -> dict[str, float]:
    """Of every LayerNorm that the network has: those of all blocks are alike."""
    eps = {"blocks": config.layer_norm_eps}
    if not config.use_mean_pooling:
        eps["encoder.norm"] = config.layer_norm_eps
    elif architecture == "VideoClassifier":
        eps["fc_norm"] = config.fc_norm_eps
    if architecture == "VideoPretrainer":
        eps["decoder.norm"] = config.decoder_norm_eps
    return eps


def _assumed(findings: Findings) -> list[str]:
    """The config fields that nothing tells, neither file nor settings nor user."""
    network, layout = findings.network, findings.network.layout
    if layout.settings == "transformers":
        return []
    told = set(network.overrides)
    if layout.settings == "model_config":
        said = findings.source.config["model_config"]
        told |= {
            field
            for field, names in UNSEEN.items()
            if any(said.get(name) is not None for name in names)
        }
    # Cosine attention has a factor for each head, stored positions show the size of the frames.
    if network.config.cos_attn:
        told |= {"num_attention_heads", "decoder_num_attention_heads"}
    found = (layout.find(layout.strip(name)) for name in findings.source.tensors)
    if layout.settings is None and any(rule and rule[0].target == POSITIONS for rule in found):
        told.add("image_size")
    unseen = list(UNSEEN)
    if network.architecture == "VideoPretrainer":
        unseen.append("decoder_num_attention_heads")
    return [field for field in unseen if field not in told]


def nearest_variant(architecture: str, config: VideoMAEConfig) -> dict[str, Any]:
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
        "differs_in": differences(given, original),
    }


def differences(given: Preprocess, original: Preprocess) -> list[str]:
    """The fields in which `given` does another thing to the pixels than `original`.

    A field that has no effect, because its step is left out, is not compared; nor are sizes where
    the crop is no square, since the original code has only square ones.
    """
    names = [f"do_{step}" for step in ("resize", "center_crop", "rescale", "normalize")]
    if given.do_resize:
        names += ["resize", "resample"]
    if original.crop_size["height"] == original.crop_size["width"]:
        names += ["size"] * given.do_resize + ["crop_size"] * given.do_center_crop
    if given.do_rescale:
        names.append("rescale_factor")
    fields = {name: (getattr(given, name), getattr(original, name)) for name in names}
    if given.do_normalize:
        for name in ("image_mean", "image_std"):
            value, wanted = getattr(given, name), getattr(original, name)
            # One number stands for every colour.
            fields[name] = (value if isinstance(value, tuple) else (value,) * 3, wanted)
    return [name for name, (value, wanted) in fields.items() if value != wanted]


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
        if last in ("query_bias", "value_bias"):
            # In float64, in which no norm overflows.
            biases[path] = _range(np.linalg.norm(leaf.astype(np.float64), axis=-1))
        elif "norm" in stem.rpartition("/")[2]:
            norms.setdefault(stem, {})[last] = _range(leaf)
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
