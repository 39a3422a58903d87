"""transformers' model with the weights of a source: what a conversion is verified against.

For a Hugging Face folder it is what transformers loads from it. For any other source it is
transformers' model, loaded with the source's tensors renamed here (not by the tables in
`layouts.py`), with the source's eps in every norm. What transformers' VideoMAE lacks is added: a
layer scale multiplied into the weights before it, learnt positions in place of the sinusoids, and
cosine attention by hooks on queries and keys.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from convert.errors import ConversionError
from convert.recognize import Network
from convert.settings import ORIGINAL_EPS
from convert.source import Source
from videomae_jax.config import VideoMAEConfig

# Names of any layout -> of a `state_dict` of transformers 5, without "videomae.".
RENAMES = (
    (r"^(module\.|_orig_mod\.|backbone\.|model\.|encoder\.(?!layer\.))+", ""),
    (r"^patch_embed\.(proj|projection)\.", "embeddings.patch_embeddings.projection."),
    (r"^blocks\.", "encoder.layer."),
    (r"^norm\.", "layernorm."),
    (r"^(head|cls_head\.fc_cls)\.", "classifier."),
    (r"^decoder\.blocks\.", "decoder.decoder_layers."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.q_bias$", ".attention.attention.query.bias"),
    (r"\.attn\.v_bias$", ".attention.attention.value.bias"),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.mlp\.(fc1|layers\.0\.0)\.", ".intermediate.dense."),
    (r"\.mlp\.(fc2|layers\.1)\.", ".output.dense."),
    (r"\.attention\.q_bias$", ".attention.query.bias"),
    (r"\.attention\.v_bias$", ".attention.value.bias"),
)

# log(1 / 0.01), as VideoMAE V2 clamps the factors of its cosine attention.
LARGEST_SCALE = 4.6052


def import_reference():
    """The modules that the reference needs, made to keep to themselves what they log.

    Raises:
        ConversionError: if one is missing.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ConversionError(
            f"--verify needs {error.name}; pip install 'videomae-jax[verify]'"
        ) from error
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return torch, transformers


def load_reference(source: Source, network: Network, *, dtype: str = "float32"):
    """transformers' model of a source, computing in float32 with weights rounded to `dtype`.

    Raises:
        ConversionError: if transformers can't load the source, or not whole.
    """
    # Rows taken of the head are no longer what the folder holds.
    folder = network.layout.settings == "transformers" and source.path.is_dir()
    make = _load_folder if folder and "num_labels" not in network.overrides else _load_tensors
    try:
        model, missing, unexpected = make(source, network, dtype)
    # transformers raises whatever its layers raise.
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ConversionError(
            f"{source.path}: transformers can't load it, so there is no reference ({reason[0]})"
        ) from error
    if missing or unexpected:
        raise ConversionError(
            f"{source.path}: transformers doesn't load it whole, so it is no reference "
            f"(missing: {', '.join(sorted(missing)) or 'none'}; "
            f"unexpected: {', '.join(sorted(unexpected)) or 'none'})"
        )
    return model.eval()


def _reference_class(network: Network) -> type:
    import transformers

    return {
        "VideoEncoder": transformers.VideoMAEModel,
        "VideoClassifier": transformers.VideoMAEForVideoClassification,
        "VideoPretrainer": transformers.VideoMAEForPreTraining,
    }[network.architecture]


def _load_folder(source: Source, network: Network, dtype: str):
    import torch
    import transformers

    config = transformers.VideoMAEConfig.from_pretrained(source.path, local_files_only=True)
    for name, value in network.overrides.items():
        setattr(config, name, list(value) if isinstance(value, tuple) else value)
    model, info = _reference_class(network).from_pretrained(
        source.path,
        config=config,
        local_files_only=True,
        output_loading_info=True,
        dtype="float32",
        use_safetensors=source.files[0].suffix == ".safetensors",
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(getattr(torch, dtype)))
    return model, info["missing_keys"], info["unexpected_keys"]


def _load_tensors(source: Source, network: Network, dtype: str):
    import torch
    import transformers

    model = _reference_class(network)(transformers.VideoMAEConfig(**_config_fields(network.config)))
    values = {
        rename(name): _rounded(tensor.read(), dtype)
        for name, tensor in source.tensors.items()
        if name not in network.ignored
    }
    beyond = _take_beyond(values)
    weights = _with_layer_scale(_split_qkv(values), beyond)
    owned = dict(model.state_dict())
    named = {name if name in owned else f"videomae.{name}": v for name, v in weights.items()}
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in named.items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    if network.layout.settings != "transformers":
        _set_eps(model, source, network)
    _add_positions_and_cosines(model, beyond)
    return model, missing, unexpected


def _rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    import torch

    given = torch.from_numpy(np.array(values, np.float32))
    return given.to(getattr(torch, dtype)).float().numpy()


def _take_beyond(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What transformers' VideoMAE has no parameters for, taken out of `values`."""
    names = [name for name in values if re.search(r"(gamma_[12]|attn\.scale|^pos_embed)$", name)]
    return {name: values.pop(name) for name in names}


def _set_eps(model, source: Source, network: Network) -> None:
    import torch

    eps = ORIGINAL_EPS
    if network.layout.settings == "model_config":
        said = source.config["model_config"].get("layer_norm_eps")
        eps = ORIGINAL_EPS if said is None else said
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = eps


def _with_layer_scale(
    weights: dict[str, np.ndarray], beyond: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Weights whose outputs are scaled: gamma * (W x + b) = (gamma W) x + gamma b."""
    for name, gamma in beyond.items():
        block, _, which = name.rpartition(".")
        if which not in ("gamma_1", "gamma_2"):
            continue
        dense = f"{block}.attention.output.dense" if which == "gamma_1" else f"{block}.output.dense"
        weights[f"{dense}.weight"] = gamma[:, None] * weights[f"{dense}.weight"]
        weights[f"{dense}.bias"] = gamma * weights[f"{dense}.bias"]
    return weights


def _add_positions_and_cosines(model, beyond: Mapping[str, np.ndarray]) -> None:
    import torch

    base = getattr(model, "videomae", model)
    for name, value in beyond.items():
        if name == "pos_embed":
            base.embeddings.position_embeddings = torch.from_numpy(value)
        elif name.endswith("attn.scale"):
            stem = name.removesuffix(".attn.scale")
            owner = model if stem.startswith("decoder.") else base
            attention = owner.get_submodule(f"{stem}.attention.attention")
            _attend_by_cosine(attention, torch.from_numpy(value).reshape(-1, 1))


def _attend_by_cosine(attention, scale) -> None:
    """Queries and keys of length 1, queries times the head's factor, no other scaling."""
    import torch

    def unit_length(module, inputs, output):
        heads = output.unflatten(-1, (attention.num_attention_heads, -1))
        return torch.nn.functional.normalize(heads, dim=-1).flatten(-2)

    def times_factor(module, inputs, output):
        factor = scale.clamp(max=LARGEST_SCALE).exp()
        return (output.unflatten(-1, (len(factor), -1)) * factor).flatten(-2)

    attention.query.register_forward_hook(unit_length)
    attention.query.register_forward_hook(times_factor)
    attention.key.register_forward_hook(unit_length)
    attention.scaling = 1.0


def _config_fields(config: VideoMAEConfig) -> dict[str, Any]:
    return {k: v for k, v in config.to_hf().items() if k not in ("model_type", "qkv_bias")}


def rename(name: str) -> str:
    """A tensor's name as a bare `VideoMAEModel` or a head of it would have it."""
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _split_qkv(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    split = {}
    for name, value in weights.items():
        stem, fused, _ = name.partition(".attn.qkv.weight")
        if fused:
            for part, third in zip(("query", "key", "value"), np.split(value, 3), strict=True):
                split[f"{stem}.attention.attention.{part}.weight"] = third
        else:
            split[name] = value
    return split
