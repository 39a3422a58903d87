"""transformers' models with weights that tell mistakes apart, and the stages of both sides."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import torch
import transformers

from convert.layouts import HUGGING_FACE
from convert.source import Tensor
from convert.translate import translate
from videomae_jax.config import VideoMAEConfig
from videomae_jax.losses import pretraining_loss
from videomae_jax.masking import split_mask
from videomae_jax.model import (
    VideoClassifier,
    VideoEncoder,
    VideoModel,
    VideoPretrainer,
    abstract_params,
)

CLASSES = {
    VideoEncoder: transformers.VideoMAEModel,
    VideoClassifier: transformers.VideoMAEForVideoClassification,
    VideoPretrainer: transformers.VideoMAEForPreTraining,
}

# Sizes that could be taken for one another differ, so that a swapped axis can't pass: tokens
# 4 x 3 x 5 = 60, head widths 7 and 11, 96 values in a tubelet.
TINY = {
    "image_size": [12, 20],
    "patch_size": 4,
    "num_frames": 8,
    "tubelet_size": 2,
    "hidden_size": 42,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "intermediate_size": 50,
    "decoder_hidden_size": 22,
    "decoder_num_attention_heads": 2,
    "decoder_num_hidden_layers": 2,
    "decoder_intermediate_size": 26,
    "num_labels": 9,
}

# Relative L2 error of a stage in float32. What is right measures up to 5e-7 and the likely mistakes
# 8e-6 and more: tests of mutations hold that end.
TOLERANCE = 2e-6

ENCODER_CALL = ("encoder", "__call__")


def build(model_class: type[VideoModel], *, seed: int = 0, **fields: Any):
    """transformers' model for one of ours: eager attention, random weights, biases and norms."""
    config = transformers.VideoMAEConfig(**fields, attn_implementation="eager")
    torch.manual_seed(seed)
    model = CLASSES[model_class](config).eval()
    roughen(model)
    return model


def roughen(model: torch.nn.Module) -> None:
    """Weights that pass unit variance on, and no bias, norm or mask token left at its 0 or 1."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or name == "mask_token":
                parameter.add_(0.3 * torch.randn_like(parameter))
            else:
                parameter.normal_(std=1 / math.sqrt(parameter[0].numel()))


def translated(reference: torch.nn.Module, model: VideoModel) -> dict[str, Any]:
    """The reference's weights as the parameter tree of `model`."""
    return translate(tensors_of(reference.state_dict()), HUGGING_FACE, abstract_params(model))


def tensors_of(state: Mapping[str, torch.Tensor]) -> dict[str, Tensor]:
    """A state_dict as the converter's readers would hand it over."""
    return {
        name: Tensor(tuple(value.shape), "float32", value.detach().numpy)
        for name, value in state.items()
    }


def config_of(reference) -> VideoMAEConfig:
    """Our config of a transformers model."""
    return VideoMAEConfig.from_hf(reference.config.to_dict())


def to_torch(clips: np.ndarray) -> torch.Tensor:
    """[B, T, H, W, C] -> transformers' [B, T, C, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(clips.transpose(0, 1, 4, 2, 3)))


def random_clips(config: VideoMAEConfig, *, batch: int = 2, seed: int = 0) -> np.ndarray:
    """Standard normal clips [B, T, H, W, C], float32."""
    shape = (batch, *config.clip_shape)
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def random_mask(
    config: VideoMAEConfig, *, batch: int = 2, ratio: float = 0.7, seed: int = 0
) -> np.ndarray:
    """Masks [B, L], True = hidden, that hide equally many tokens, other ones in each row."""
    random = np.random.default_rng(seed)
    hidden = np.arange(config.num_tokens) < max(1, int(ratio * config.num_tokens))
    return np.stack([random.permutation(hidden) for _ in range(batch)])


def reference_stages(
    reference, clips: np.ndarray, mask: np.ndarray | None = None, *, with_maps: bool = True
) -> dict:
    """What the reference computes on the way: {stage: array}; attention maps take the memory."""
    kept = {}
    hooks = [
        reference.base_model.register_forward_hook(
            lambda module, args, output: kept.update(tokens=output.last_hidden_state)
        )
    ]
    if hasattr(reference, "classifier"):
        hooks.append(
            reference.classifier.register_forward_pre_hook(
                lambda module, args: kept.update(pooled=args[0])
            )
        )
    rest = () if mask is None else (torch.from_numpy(mask),)
    with torch.inference_mode():
        outputs = reference(
            to_torch(clips), *rest, output_hidden_states=True, output_attentions=with_maps
        )
    for hook in hooks:
        hook.remove()
    head = "logits" if "pooled" in kept else "predictions"
    if "logits" in outputs:
        kept[head] = outputs.logits
    if outputs.get("loss") is not None:
        kept["loss"] = outputs.loss
    return named(outputs.hidden_states, outputs.attentions or ()) | {
        name: value.numpy() for name, value in kept.items()
    }


def our_stages(
    model: VideoModel, params: Mapping, clips: np.ndarray, mask: np.ndarray | None = None
) -> dict:
    """The same stages of ours, from one compiled program."""
    rest = () if mask is None else (mask,)
    if isinstance(model, VideoEncoder) and mask is not None:
        rest = (split_mask(mask, int(mask[0].sum()))[0],)
    if isinstance(model, VideoPretrainer):
        model = model.clone(num_masked=int(mask[0].sum()))
    hidden, maps, rest = jax.jit(_every_stage, static_argnums=0)(model, params, clips, *rest)
    return jax.tree.map(np.asarray, named(hidden, maps) | rest)


def _every_stage(model: VideoModel, params: Mapping, clips: jax.Array, *rest: jax.Array) -> tuple:
    variables = {"params": params}
    hidden = model.apply(variables, clips, *rest, method="hidden_states")
    maps = model.apply(variables, clips, *rest, method="attention_maps")
    out, kept = model.apply(
        variables,
        clips,
        *rest,
        capture_intermediates=lambda module, method: (module.name, method) == ENCODER_CALL,
        mutable=["intermediates"],
    )
    if isinstance(model, VideoEncoder):
        return hidden, maps, {"tokens": out}
    (tokens,) = kept["intermediates"]["encoder"]["__call__"]
    if isinstance(model, VideoClassifier):
        pooled = model.apply(variables, tokens, method="pool")
        return hidden, maps, {"tokens": tokens, "pooled": pooled, "logits": out}
    loss = pretraining_loss(out, clips, *rest, model.config)
    return hidden, maps, {"tokens": tokens, "predictions": out, "loss": loss}


def named(hidden, maps=()) -> dict:
    """Hidden states and attention maps by the layer that they come from."""
    names = ["embedding", *(f"layer {layer}" for layer in range(len(hidden) - 1))]
    named = dict(zip(names, hidden, strict=True))
    return named | {f"attention {layer}": value for layer, value in enumerate(maps)}


def relative_l2(given, wanted) -> float:
    """|given - wanted| / |wanted| in float64, all values together; infinite for another shape."""
    given, wanted = np.asarray(given, np.float64), np.asarray(wanted, np.float64)
    if given.shape != wanted.shape:
        return math.inf
    error = np.linalg.norm(given - wanted) / (np.linalg.norm(wanted) or 1.0)
    return float(error) if np.isfinite(error) else math.inf


def distances(given: Mapping, wanted: Mapping) -> dict[str, float]:
    """The relative L2 error by stage; both sides must have the same stages."""
    if set(given) != set(wanted):
        raise AssertionError(f"stages differ: {sorted(set(given) ^ set(wanted))}")
    return {stage: relative_l2(given[stage], wanted[stage]) for stage in wanted}


def compare(
    model_class: type[VideoModel], *, masked: bool | None = None, **fields: Any
) -> dict[str, float]:
    """Distances by stage for a tiny model with these fields of transformers' config."""
    return compare_with(build(model_class, **(TINY | fields)), model_class, masked=masked)


def compare_with(
    reference, model_class: type[VideoModel], *, masked: bool | None = None
) -> dict[str, float]:
    """Distances by stage between a reference and ours with its weights, on random inputs."""
    config = config_of(reference)
    model = model_class(config)
    clips = random_clips(config)
    masked = model_class is VideoPretrainer if masked is None else masked
    mask = random_mask(config) if masked else None
    wanted = reference_stages(reference, clips, mask)
    return distances(our_stages(model, translated(reference, model), clips, mask), wanted)


def quieten(reference) -> None:
    """Small variance before every norm, so that its eps can be seen at `TOLERANCE`.

    Positions are what keeps it large: those of a one-token clip, or of the visible and the hidden
    token of a two-token clip, are taken back by the patch embedding's bias and the mask token.
    """
    embeddings = reference.base_model.embeddings
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if "output.dense" in name or "projection" in name or name == "mask_token":
                parameter.mul_(0.05)
        embeddings.patch_embeddings.projection.bias.sub_(embeddings.position_embeddings[0, 0])
        if hasattr(reference, "mask_token"):
            reference.mask_token.sub_(reference.position_embeddings[:, 1:])


def mutated_tensors(reference) -> Iterator[str]:
    """Makes one likely mistake at a time in the reference's weights, says which, and mends it.

    Every bias and mask token at 0, every norm scale at 1, every matrix with its first two rows
    swapped, and in each layer queries and keys, or queries and values, in each other's place.
    """
    parameters = dict(reference.named_parameters())
    for name, parameter in parameters.items():
        if parameter.ndim == 1 or name == "mask_token":
            is_scale = "norm" in name and name.endswith("weight")
            wrong = torch.ones_like(parameter) if is_scale else torch.zeros_like(parameter)
        else:
            wrong = torch.cat([parameter[1:2], parameter[:1], parameter[2:]])
        yield from _while_swapped({parameter: wrong}, name)
    for name, query in parameters.items():
        if name.endswith("attention.query.weight"):
            for other in ("key", "value"):
                partner = parameters[name.replace("query", other)]
                yield from _while_swapped({query: partner, partner: query}, f"{name} <> {other}")


def _while_swapped(wrong: Mapping[torch.nn.Parameter, torch.Tensor], name: str) -> Iterator[str]:
    right = {parameter: parameter.detach().clone() for parameter in wrong}
    wrong = {parameter: value.detach().clone() for parameter, value in wrong.items()}
    with torch.no_grad():
        for parameter, value in wrong.items():
            parameter.copy_(value)
        yield name
        for parameter, value in right.items():
            parameter.copy_(value)


def assert_agree(errors: Mapping[str, float], tolerance: float = TOLERANCE) -> None:
    """Every stage within `tolerance`; the message has all of them, `pytest -s` shows them."""
    print("\n" + ", ".join(f"{stage} {error:.1e}" for stage, error in errors.items()))
    wrong = {stage: error for stage, error in errors.items() if not error <= tolerance}
    assert not wrong, f"beyond {tolerance:g}: {wrong}; all: {errors}"
