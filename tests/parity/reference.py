"""transformers' models with weights that tell mistakes apart, and their tensors in our tree."""

import numpy as np
import torch
import transformers

from convert.layouts import HUGGING_FACE
from convert.source import Tensor
from convert.translate import translate
from videomae_jax.config import VideoMAEConfig
from videomae_jax.model import VideoClassifier, VideoEncoder, VideoPretrainer, abstract_params

CLASSES = {
    VideoEncoder: transformers.VideoMAEModel,
    VideoClassifier: transformers.VideoMAEForVideoClassification,
    VideoPretrainer: transformers.VideoMAEForPreTraining,
}

# Every size differs from every other, so that a swapped axis can't pass.
TINY = {
    "image_size": [12, 20],
    "patch_size": 4,
    "num_frames": 6,
    "tubelet_size": 2,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "decoder_hidden_size": 20,
    "decoder_num_attention_heads": 5,
    "decoder_num_hidden_layers": 2,
    "decoder_intermediate_size": 28,
    "num_labels": 7,
}


def build(model_class: type, *, seed: int = 0, **fields):
    """transformers' model for one of ours: eager attention, random weights, biases and norms."""
    config = transformers.VideoMAEConfig(**fields, attn_implementation="eager")
    torch.manual_seed(seed)
    model = CLASSES[model_class](config).eval()
    roughen(model)
    return model


def roughen(model: torch.nn.Module) -> None:
    """Move every bias, norm scale and mask token away from the 0 and 1 that they start at."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or name == "mask_token":
                parameter.add_(0.3 * torch.randn_like(parameter))
            else:
                parameter.mul_(3.0)


def translated(reference: torch.nn.Module, model) -> dict:
    """The reference's weights as the parameter tree of `model`."""
    return translate(tensors_of(reference.state_dict()), HUGGING_FACE, abstract_params(model))


def tensors_of(state: dict[str, torch.Tensor]) -> dict[str, Tensor]:
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
    return torch.from_numpy(clips).permute(0, 1, 4, 2, 3)


def random_clips(config: VideoMAEConfig, *, batch: int = 2, seed: int = 0) -> np.ndarray:
    """Standard normal clips [B, T, H, W, C], float32."""
    shape = (batch, *config.clip_shape)
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
