"""Gradients of both losses with respect to every parameter, against torch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from convert.layouts import HUGGING_FACE, PARTS
from convert.translate import flatten, translate
from tests.parity.reference import (
    TINY,
    build,
    config_of,
    random_clips,
    random_mask,
    relative_l2,
    tensors_of,
    to_torch,
    translated,
)
from videomae_jax.losses import pretraining_loss
from videomae_jax.model import VideoClassifier, VideoPretrainer, abstract_params

TOLERANCE = 1e-4
VARIED = {
    "none": {},
    "a norm, no biases": {"use_mean_pooling": False, "qv_bias": False},
    "four colours": {"num_channels": 4},
    "gelu_new": {"hidden_act": "gelu_new"},
}


def torch_gradients(reference, model, loss: torch.Tensor) -> dict[str, np.ndarray]:
    """torch's gradient of every parameter, in our tree."""
    reference.zero_grad()
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in reference.named_parameters()}
    for name, gradient in gradients.items():
        assert gradient is not None, name
        assert gradient.abs().max() > 0, name
    return translate(tensors_of(gradients), HUGGING_FACE, abstract_params(model))


def pieces(tree) -> dict[str, np.ndarray]:
    """The leaves by layer, packed kernels by query, key and value: torch's parameters again."""
    found = {}
    for path, leaf in flatten(tree).items():
        layers = enumerate(leaf) if "layers/" in path else [("", leaf)]
        for layer, value in layers:
            name = f"{path} {layer}".strip()
            if path.endswith("qkv/kernel"):
                thirds = np.split(value, 3, axis=-1)
                found |= {
                    f"{name} {part}": third for part, third in zip(PARTS, thirds, strict=True)
                }
            else:
                found[name] = value
    return found


def assert_same_gradients(ours, theirs, reference) -> None:
    ours, theirs = pieces(ours), pieces(theirs)
    assert set(ours) == set(theirs)
    assert len(ours) == len(list(reference.parameters()))
    errors = {name: relative_l2(ours[name], theirs[name]) for name in theirs}
    worst = max(errors, key=errors.get)
    print(f"{len(errors)} parameters, worst {worst}: {errors[worst]:.1e}")
    assert errors[worst] <= TOLERANCE, errors


@pytest.mark.parametrize("fields", VARIED.values(), ids=VARIED)
def test_classification_cross_entropy(fields):
    reference = build(VideoClassifier, **TINY | fields)
    config = config_of(reference)
    model = VideoClassifier(config)
    clips, labels = random_clips(config, batch=3), np.array([5, 0, 8])

    def loss(params, clips):
        logits = model.apply({"params": params}, clips)
        return -jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels].mean()

    pixels = to_torch(clips).requires_grad_()
    wanted = reference(pixels, labels=torch.from_numpy(labels)).loss
    given, (gradients, of_clips) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(
        translated(reference, model), clips
    )
    theirs = torch_gradients(reference, model, wanted)
    assert relative_l2(given, wanted.detach()) <= 2e-6
    assert_same_gradients(gradients, theirs, reference)
    assert relative_l2(to_torch(np.asarray(of_clips)), pixels.grad) <= TOLERANCE


@pytest.mark.parametrize(
    ("fields", "norm_pix_loss"),
    [(fields, True) for fields in VARIED.values()] + [({}, False), ({"hidden_act": "silu"}, False)],
    ids=str,
)
def test_pretraining_loss(fields, norm_pix_loss):
    reference = build(VideoPretrainer, **TINY | {"norm_pix_loss": norm_pix_loss} | fields)
    config = config_of(reference)
    clips, mask = random_clips(config, batch=3), random_mask(config, batch=3)
    model = VideoPretrainer(config, num_masked=int(mask[0].sum()))

    def loss(params, clips, mask):
        predictions = model.apply({"params": params}, clips, mask)
        return pretraining_loss(predictions, clips, mask, config)

    pixels = to_torch(clips).requires_grad_()
    wanted = reference(pixels, torch.from_numpy(mask)).loss
    given, (gradients, of_clips) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(
        translated(reference, model), clips, mask
    )
    theirs = torch_gradients(reference, model, wanted)
    assert relative_l2(given, wanted.detach()) <= 2e-6
    assert_same_gradients(gradients, theirs, reference)
    # What is to be predicted is no way for a gradient: only what is seen gets one.
    assert relative_l2(to_torch(np.asarray(of_clips)), pixels.grad) <= TOLERANCE
