"""VideoPretrainer and its loss against transformers' VideoMAEForPreTraining."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.models.videomae import modeling_videomae

from tests.parity.reference import (
    TINY,
    TOLERANCE,
    assert_agree,
    build,
    compare,
    compare_with,
    config_of,
    distances,
    mutated_tensors,
    our_stages,
    quieten,
    random_clips,
    random_mask,
    reference_stages,
    relative_l2,
    roughen,
    to_torch,
    translated,
)
from videomae_jax.losses import pretraining_loss, pretraining_targets
from videomae_jax.model import VideoPretrainer

KNOBS = {
    "none": {},
    "image_size, a number": {"image_size": 12},
    "image_size, tall": {"image_size": [24, 8]},
    "num_channels, 1": {"num_channels": 1},
    "num_channels, 4": {"num_channels": 4},
    "num_frames, 18": {"num_frames": 18},
    "tubelet_size, 1": {"num_frames": 5, "tubelet_size": 1},
    "tubelet_size, 3": {"num_frames": 6, "tubelet_size": 3},
    "hidden_act": {"hidden_act": "gelu_new"},
    "hidden_dropout_prob": {"hidden_dropout_prob": 0.3},
    "attention_probs_dropout_prob": {"attention_probs_dropout_prob": 0.4},
    "layer_norm_eps": {"layer_norm_eps": 1e-2},
    "qv_bias": {"qv_bias": False},
    "use_mean_pooling": {"use_mean_pooling": False},
    "decoder_hidden_size, odd": {"decoder_hidden_size": 21, "decoder_num_attention_heads": 3},
    "decoder_hidden_size, wide": {"decoder_hidden_size": 66},
    "decoder_num_attention_heads, 1": {"decoder_num_attention_heads": 1},
    "decoder_num_hidden_layers, 1": {"decoder_num_hidden_layers": 1},
    "decoder_num_hidden_layers, 4": {"decoder_num_hidden_layers": 4},
    "decoder_intermediate_size": {"decoder_intermediate_size": 5},
    "norm_pix_loss": {"norm_pix_loss": False},
}


class PlainPretrainer(torch.nn.Module):
    """transformers' pre-trainer in plain torch, for what upstream can't do: patches not square.

    Upstream squares `patch_size` in its decoder, its loss too; the encoder takes any.
    """

    def __init__(self, config: transformers.VideoMAEConfig):
        super().__init__()
        self.config = config
        self.patch = np.broadcast_to(config.patch_size, 2).tolist()
        self.videomae = modeling_videomae.VideoMAEModel(config)
        width = config.decoder_hidden_size
        self.encoder_to_decoder = torch.nn.Linear(config.hidden_size, width, bias=False)
        self.mask_token = torch.nn.Parameter(torch.zeros(1, 1, width))
        self.position_embeddings = modeling_videomae.get_sinusoid_encoding_table(
            self.videomae.embeddings.num_patches, width
        )
        square = transformers.VideoMAEConfig(**config.to_dict() | {"patch_size": 1})
        square._attn_implementation = "eager"
        self.decoder = modeling_videomae.VideoMAEDecoder(square)
        pixels = config.tubelet_size * self.patch[0] * self.patch[1] * config.num_channels
        self.decoder.head = torch.nn.Linear(width, pixels)

    @property
    def base_model(self):
        return self.videomae

    def forward(self, clips, mask, **kept):
        encoded = self.videomae(clips, bool_masked_pos=mask, **kept)
        seen = self.encoder_to_decoder(encoded.last_hidden_state)
        positions = self.position_embeddings[0]
        rows = [
            torch.cat([row + positions[~hidden], self.mask_token[0] + positions[hidden]])
            for row, hidden in zip(seen, mask, strict=True)
        ]
        logits = self.decoder(torch.stack(rows), int(mask[0].sum())).logits
        targets = torch.stack(
            [row[hidden] for row, hidden in zip(self.targets(clips), mask, strict=True)]
        )
        return modeling_videomae.VideoMAEForPreTrainingOutput(
            loss=torch.mean((logits - targets) ** 2),
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def targets(self, clips):
        if self.config.num_channels == 3:
            std, mean = torch.tensor([[0.229, 0.224, 0.225], [0.485, 0.456, 0.406]])
            clips = clips * std[:, None, None] + mean[:, None, None]
        tokens = []
        for frames in clips.split(self.config.tubelet_size, dim=1):
            for rows in frames.split(self.patch[0], dim=3):
                for tubelet in rows.split(self.patch[1], dim=4):
                    tokens.append(tubelet.permute(0, 1, 3, 4, 2).flatten(1, 3))
        tokens = torch.stack(tokens, dim=1)
        if self.config.norm_pix_loss:
            deviation = tokens.var(dim=2, keepdim=True, unbiased=True).sqrt()
            tokens = (tokens - tokens.mean(dim=2, keepdim=True)) / (deviation + 1e-6)
        return tokens.flatten(2)


def build_plain(**fields):
    torch.manual_seed(0)
    config = transformers.VideoMAEConfig(**TINY | fields, attn_implementation="eager")
    reference = PlainPretrainer(config).eval()
    roughen(reference)
    return reference


@pytest.fixture(scope="module")
def reference():
    return build(VideoPretrainer, **TINY)


@pytest.fixture(scope="module")
def inputs(reference):
    config = config_of(reference)
    return random_clips(config), random_mask(config)


@pytest.mark.parametrize("fields", KNOBS.values(), ids=KNOBS)
def test_pretrainer(fields):
    assert_agree(compare(VideoPretrainer, **fields))


@pytest.mark.parametrize("norm_pix_loss", [True, False])
@pytest.mark.parametrize("patch_size", [[3, 5], [6, 4]], ids=str)
def test_patches_that_are_not_square(patch_size, norm_pix_loss):
    fields = {"patch_size": patch_size, "norm_pix_loss": norm_pix_loss}
    assert_agree(compare_with(build_plain(**fields), VideoPretrainer))


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_the_plain_pretrainer_is_transformers(norm_pix_loss):
    theirs = build(VideoPretrainer, **TINY | {"norm_pix_loss": norm_pix_loss})
    plain = build_plain(norm_pix_loss=norm_pix_loss)
    plain.load_state_dict(theirs.state_dict())
    config = config_of(theirs)
    clips, mask = random_clips(config), random_mask(config)
    assert_agree(
        distances(reference_stages(plain, clips, mask), reference_stages(theirs, clips, mask))
    )


@pytest.mark.parametrize("num_channels", [1, 4])
def test_raw_pixels_of_other_than_three_colours_are_refused_as_upstream(num_channels):
    fields = TINY | {"num_channels": num_channels, "norm_pix_loss": False}
    reference = build(VideoPretrainer, **fields)
    config = config_of(reference)
    clips, mask = random_clips(config), random_mask(config)
    with pytest.raises(ValueError, match="norm_pix_loss"):
        reference(to_torch(clips), torch.from_numpy(mask))
    with pytest.raises(ValueError, match="norm_pix_loss=False needs num_channels=3"):
        pretraining_targets(clips, config)


@pytest.mark.parametrize("hidden", [1, 59])
def test_eagerly_as_compiled(reference, inputs, hidden):
    """Counted in the mask outside `jit`, said beforehand inside: the same as the reference."""
    clips, _ = inputs
    config = config_of(reference)
    mask = random_mask(config, ratio=hidden / config.num_tokens + 1e-6, seed=hidden)
    assert mask.sum(axis=1).tolist() == [hidden, hidden]
    model = VideoPretrainer(config)
    variables = {"params": translated(reference, model)}
    predictions = model.apply(variables, clips, mask)
    eager = {
        "predictions": predictions,
        "loss": pretraining_loss(predictions, clips, mask, config),
    }
    wanted = reference_stages(reference, clips, mask)
    assert_agree(distances(eager, {stage: wanted[stage] for stage in eager}))
    compiled = our_stages(model, variables["params"], clips, mask)
    assert_agree(distances(compiled, wanted))


def test_rows_do_not_mix(reference, inputs):
    """Each row by itself, under its own mask, predicts what it does in a batch."""
    clips, mask = inputs
    assert not (mask[0] == mask[1]).all()
    model = VideoPretrainer(config_of(reference), num_masked=int(mask[0].sum()))
    variables = {"params": translated(reference, model)}
    apply = jax.jit(model.apply)
    together = apply(variables, clips, mask)
    for row in range(len(clips)):
        alone = apply(variables, clips[row : row + 1], mask[row : row + 1])
        assert relative_l2(together[row], alone[0]) <= TOLERANCE


def test_targets(reference, inputs):
    """Of every tubelet, hidden or not; the loss of predictions that are the targets is 0."""
    clips, mask = inputs
    config = config_of(reference)
    targets = np.asarray(pretraining_targets(clips, config))
    plain = build_plain().targets(to_torch(clips)).numpy()
    assert relative_l2(targets, plain) <= TOLERANCE
    hidden = np.stack([row[of] for row, of in zip(targets, mask, strict=True)])
    assert pretraining_loss(jnp.asarray(hidden), clips, mask, config) == 0.0


# What the tolerance would let pass, were it wider.


@pytest.mark.parametrize(
    "wrong",
    [
        {"hidden_act": "gelu_new"},
        {"num_attention_heads": 7},
        {"decoder_num_attention_heads": 11},
    ],
    ids=str,
)
def test_a_wrong_config_is_seen_in_the_predictions(reference, inputs, wrong):
    model = VideoPretrainer(dataclasses.replace(config_of(reference), **wrong))
    given = our_stages(model, translated(reference, model), *inputs)
    errors = distances(given, reference_stages(reference, *inputs))
    print(f"{wrong}: predictions {errors['predictions']:.1e}, loss {errors['loss']:.1e}")
    assert errors["predictions"] > 10 * TOLERANCE
    assert errors["loss"] > TOLERANCE


@pytest.mark.parametrize("fields", [{}, {"use_mean_pooling": False}], ids=["no norm", "norm"])
def test_every_wrong_tensor_is_seen_in_the_predictions(fields):
    reference = build(VideoPretrainer, **TINY | fields)
    config = config_of(reference)
    clips, mask = random_clips(config), random_mask(config)
    model = VideoPretrainer(config)
    given = our_stages(model, translated(reference, model), clips, mask)["predictions"]

    def error():
        return relative_l2(given, reference_stages(reference, clips, mask)["predictions"])

    seen = {mistake: error() for mistake in mutated_tensors(reference)}
    assert error() <= TOLERANCE
    print(f"least: {min((error, mistake) for mistake, error in seen.items())}")
    blocks = TINY["num_hidden_layers"] + TINY["decoder_num_hidden_layers"]
    assert len(seen) == len(list(reference.parameters())) + 2 * blocks
    assert not {mistake: error for mistake, error in seen.items() if error < 100 * TOLERANCE}


@pytest.mark.parametrize(
    ("eps", "fields"), [(1e-12, {}), (1e-6, {"use_mean_pooling": False})], ids=str
)
def test_every_wrong_eps_is_seen_at_a_stage(fields, eps):
    """Two tokens without much variance, one of them hidden."""
    two_tokens = {"image_size": 4, "num_frames": 4, "layer_norm_eps": eps}
    reference = build(VideoPretrainer, **TINY | two_tokens | fields)
    quieten(reference)
    config = config_of(reference)
    clips, mask = random_clips(config), np.array([[False, True]] * 2)
    model = VideoPretrainer(config)
    params = translated(reference, model)
    wanted = reference_stages(reference, clips, mask)
    given = our_stages(model, params, clips, mask)
    assert_agree(distances(given, wanted))
    norms = [module for module in reference.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert len(norms) == 11 + ("use_mean_pooling" in fields)
    for norm in norms:
        right = norm.eps
        for norm.eps in {1e-12, 1e-6, 1e-5} - {right}:
            errors = distances(given, reference_stages(reference, clips, mask))
            stage = max(errors, key=errors.get)
            print(f"eps {right:g} as {norm.eps:g}: {errors[stage]:.1e} in {stage}")
            assert errors[stage] > TOLERANCE
        norm.eps = right
    for wrong in ({"decoder_norm_eps": 1e-6}, {"decoder_norm_eps": 1e-12}):
        model = VideoPretrainer(dataclasses.replace(config, **wrong))
        errors = distances(our_stages(model, params, clips, mask), wanted)
        assert errors["predictions"] > 10 * TOLERANCE
