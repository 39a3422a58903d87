"""transformers' PyTorch model and ours on the same random clip, stage by stage.

The reference comes from `reference.py` and never sees our parameter tree.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from convert.errors import VerificationError
from convert.recognize import Network
from convert.reference import import_reference, load_reference
from convert.source import Source
from videomae_jax.config import VideoMAEConfig
from videomae_jax.losses import pretraining_loss
from videomae_jax.masking import tube_mask
from videomae_jax.model import VideoClassifier, VideoModel

# Relative L2 error allowed at each stage in float32. Measured on a random ViT-S: a right port
# 5e-7, a tanh GELU in place of the exact one 3e-5 to 8e-5, wrong heads 2e-3. A wrong eps stays
# below, so those are compared as numbers.
TOLERANCE = 1e-5


@dataclasses.dataclass(frozen=True)
class Stage:
    """How far apart two arrays are: the largest difference, and L2 relative to the reference."""

    name: str
    max_abs: float
    relative_l2: float


def verify(
    source: Source,
    network: Network,
    model: VideoModel,
    params: Mapping[str, Any],
    *,
    dtype: str = "float32",
) -> dict[str, Any]:
    """Compare, and return the figures for the conversion report.

    Of parameters kept in another `dtype`, the reference's are rounded to it, too.

    Raises:
        ConversionError: if torch or transformers is missing, or transformers can't load the source.
        VerificationError: if a stage is further apart than `TOLERANCE`; `figures` holds them all.
    """
    torch, transformers = import_reference()
    reference = load_reference(source, network, dtype=dtype)
    _refuse_other_eps(reference, network.config)
    clip, mask = _random_inputs(network)
    wanted = _reference_stages(reference, clip, mask)
    given = _our_stages(model, params, clip, mask)
    stages = [compare(name, given[name], wanted[name]) for name in wanted]
    figures = {
        "reference": f"transformers {transformers.__version__}, torch {torch.__version__}"
        + "".join(f", given {name}={value}" for name, value in network.overrides.items())
        + (f", weights rounded to {dtype}" if dtype != "float32" else ""),
        "backend": jax.default_backend(),
        "tolerance": TOLERANCE,
        "stages": [dataclasses.asdict(stage) for stage in stages],
        "agrees": all(stage.relative_l2 <= TOLERANCE for stage in stages),
    }
    if not figures["agrees"]:
        raise VerificationError(as_text(figures))
    return figures


def compare(name: str, given: np.ndarray, wanted: np.ndarray) -> Stage:
    """Distances in float64; infinite where shapes differ or a value is not finite."""
    given, wanted = np.asarray(given, np.float64), np.asarray(wanted, np.float64)
    if given.shape != wanted.shape or not np.isfinite(given).all():
        return Stage(name, float("inf"), float("inf"))
    apart = given - wanted
    scale = np.linalg.norm(wanted)
    return Stage(name, float(np.abs(apart).max()), float(np.linalg.norm(apart) / (scale or 1.0)))


def as_text(figures: Mapping[str, Any]) -> str:
    """The figures as a table for a terminal."""
    lines = [f"{'stage':<15}{'max difference':>16}{'relative L2':>16}"]
    lines += [
        f"{stage['name']:<15}{stage['max_abs']:>16.2e}{stage['relative_l2']:>16.2e}"
        for stage in figures["stages"]
    ]
    verdict = "agrees" if figures["agrees"] else "DOES NOT AGREE"
    lines.append(
        f"{verdict} with {figures['reference']} (relative L2 allowed: {figures['tolerance']:g})"
    )
    return "\n".join(lines)


def _refuse_other_eps(reference, config: VideoMAEConfig) -> None:
    ours = {"fc_norm": config.fc_norm_eps, "decoder.norm": config.decoder_norm_eps}
    for name, module in reference.named_modules():
        if type(module).__name__ != "LayerNorm":
            continue
        wanted = ours.get(name, config.layer_norm_eps)
        if module.eps != wanted:
            raise VerificationError(f"{name} has eps {module.eps:g} there and {wanted:g} here")


def _random_inputs(network: Network) -> tuple[np.ndarray, np.ndarray | None]:
    config = network.config
    clip = np.random.default_rng(0).standard_normal((1, *config.clip_shape), dtype=np.float32)
    if network.architecture != "VideoPretrainer":
        return clip, None
    places = config.grid[1] * config.grid[2]
    # Sizes with fewer than ten places hide one token in two.
    ratio = 0.9 if places >= 10 else 0.5
    return clip, np.asarray(tube_mask(jax.random.key(0), config, ratio=ratio))


def _reference_stages(
    reference, clip: np.ndarray, mask: np.ndarray | None
) -> dict[str, np.ndarray]:
    import torch

    stages: dict[str, np.ndarray] = {}

    def keep(name: str):
        def hook(module, inputs, output):
            stages[name] = output.detach().numpy()

        return hook

    encoder = getattr(reference, "videomae", reference)
    encoder.embeddings.register_forward_hook(keep("embedding"))
    encoder.encoder.layer[0].register_forward_hook(keep("first block"))
    encoder.encoder.layer[-1].register_forward_hook(keep("encoder"))
    inputs = {"pixel_values": torch.from_numpy(clip).permute(0, 1, 4, 2, 3)}
    if mask is not None:
        inputs["bool_masked_pos"] = torch.from_numpy(np.array(mask))
    with torch.no_grad():
        output = reference(**inputs)
    if encoder is reference:
        return stages | {"tokens": output.last_hidden_state.numpy()}
    if mask is None:
        return stages | {"logits": output.logits.numpy()}
    return stages | {"predictions": output.logits.numpy(), "loss": output.loss.numpy()}


def _our_stages(
    model: VideoModel, params: Mapping[str, Any], clip: np.ndarray, mask: np.ndarray | None
) -> dict[str, np.ndarray]:
    inputs = (clip,) if mask is None else (clip, mask)

    def run(params: Mapping[str, Any], clip: np.ndarray):
        arguments = (clip, *inputs[1:])
        variables = {"params": params}
        states = model.apply(variables, *arguments, method="hidden_states")
        return states[0], states[1], states[-1], model.apply(variables, *arguments)

    # Accelerators multiply float32 in fewer digits unless told not to.
    with jax.default_matmul_precision("float32"):
        embedding, first, last, output = jax.jit(run)(params, clip)
    stages = {"embedding": embedding, "first block": first, "encoder": last}
    if mask is not None:
        loss = pretraining_loss(output, clip, mask, model.config)
        stages |= {"predictions": output, "loss": loss}
    else:
        stages["logits" if isinstance(model, VideoClassifier) else "tokens"] = output
    return {name: np.asarray(value) for name, value in stages.items()}
