"""The weight maps: a table a layout, side by side.

A rule says which source names it takes, where they go, and how the array changes on the way there
and back. `{n}` in both is a layer. A target is a path in the parameter tree of `videomae_jax`,
written for a model with a head ("encoder/..."); of a bare encoder the same without that prefix.
`part` is the third of a packed kernel that one of q, k, v fills.

A sixth layout is one more table at the end, and its name in `LAYOUTS`.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Literal

from convert.changes import (
    FLAT_KERNEL,
    HEAD_SCALES,
    MASK_TOKEN,
    POSITIONS,
    SAME,
    TRANSPOSED,
    Change,
)

PARTS = ("query", "key", "value")


@dataclasses.dataclass(frozen=True)
class Rule:
    """Tensors named like `pattern` go to `target`, changed by `change`, one of `changes.py`."""

    pattern: str
    target: str
    change: Change = SAME
    part: str | None = None

    @property
    def stacked(self) -> bool:
        """Whether there is one such tensor a layer."""
        return "{n}" in self.pattern

    def match(self, name: str) -> int | None:
        """The layer `name` speaks of if this rule takes it (0 where there are none), else None."""
        found = re.fullmatch(re.escape(self.pattern).replace(r"\{n\}", "([0-9]{1,4})"), name)
        return None if found is None else int(found[1]) if found.groups() else 0


def block_rules(rules: Iterable[Rule], source: str, target: str) -> tuple[Rule, ...]:
    """The rules of one block as the rules of a stack of blocks."""
    return tuple(
        dataclasses.replace(
            rule, pattern=f"{source}.{{n}}.{rule.pattern}", target=f"{target}/{rule.target}"
        )
        for rule in rules
    )


def prefixed(prefix: str, rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """Rules for the same names behind a prefix."""
    return tuple(dataclasses.replace(rule, pattern=prefix + rule.pattern) for rule in rules)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """How one code base names its weights.

    `prefixes` are taken off a name, in any order and number, before any rule sees it. `landmark` is
    the rule-side name that every file of this layout has. `settings` is what the config.json that
    belongs to it holds: transformers' config, VideoMAE V2's `model_config`, or None where there is
    no such file. `ignored` are patterns of names that no network needs, each with the reason.
    `encoder_prefix` is what the code base itself puts before the names of an encoder inside a
    larger network, by our name of that, for writing files back.
    """

    name: str
    about: str
    prefixes: tuple[str, ...]
    landmark: str
    rules: tuple[Rule, ...]
    settings: Literal["transformers", "model_config"] | None = None
    ignored: tuple[tuple[str, str], ...] = ()
    encoder_prefix: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)

    def strip(self, name: str) -> str:
        """`name` as the rules know it."""
        if not self.prefixes:
            return name
        return re.sub(f"^({'|'.join(map(re.escape, self.prefixes))})+", "", name)

    def find(self, name: str) -> tuple[Rule, int] | None:
        """The rule that takes `name`, stripped, and the layer it speaks of."""
        for rule in self.rules:
            layer = rule.match(name)
            if layer is not None:
                return rule, layer
        return None

    def reason_to_ignore(self, name: str) -> str | None:
        """Why no network needs the tensor `name`, stripped; None for any other."""
        matches = (reason for pattern, reason in self.ignored if re.match(pattern, name))
        return next(matches, None)


# What data parallel, averaged and compiled models put before every name.
WRAPPERS = ("module.", "_orig_mod.")
# torch's and mmengine's averages of weights count their steps beside them.
COUNTERS = ((r"(n_averaged|steps)$", "the count of the steps that were averaged over"),)

# Every code base names these alike.
SHARED = (
    Rule("fc_norm.weight", "fc_norm/scale"),
    Rule("fc_norm.bias", "fc_norm/bias"),
    Rule("encoder_to_decoder.weight", "encoder_to_decoder/kernel", TRANSPOSED),
    Rule("mask_token", "mask_token", MASK_TOKEN),
    Rule("decoder.norm.weight", "decoder/norm/scale"),
    Rule("decoder.norm.bias", "decoder/norm/bias"),
    Rule("decoder.head.weight", "decoder/head/kernel", TRANSPOSED),
    Rule("decoder.head.bias", "decoder/head/bias"),
)

# --- transformers ---------------------------------------------------------------------------------

HUGGING_FACE_BLOCK = (
    Rule("layernorm_before.weight", "norm_1/scale"),
    Rule("layernorm_before.bias", "norm_1/bias"),
    Rule("attention.attention.query.weight", "attention/qkv/kernel", TRANSPOSED, "query"),
    Rule("attention.attention.key.weight", "attention/qkv/kernel", TRANSPOSED, "key"),
    Rule("attention.attention.value.weight", "attention/qkv/kernel", TRANSPOSED, "value"),
    # Published files say q_bias and v_bias; the state_dict of transformers 5 says query.bias.
    Rule("attention.attention.q_bias", "attention/qkv/query_bias"),
    Rule("attention.attention.v_bias", "attention/qkv/value_bias"),
    Rule("attention.attention.query.bias", "attention/qkv/query_bias"),
    Rule("attention.attention.value.bias", "attention/qkv/value_bias"),
    Rule("attention.output.dense.weight", "attention/proj/kernel", TRANSPOSED),
    Rule("attention.output.dense.bias", "attention/proj/bias"),
    Rule("layernorm_after.weight", "norm_2/scale"),
    Rule("layernorm_after.bias", "norm_2/bias"),
    Rule("intermediate.dense.weight", "mlp/fc1/kernel", TRANSPOSED),
    Rule("intermediate.dense.bias", "mlp/fc1/bias"),
    Rule("output.dense.weight", "mlp/fc2/kernel", TRANSPOSED),
    Rule("output.dense.bias", "mlp/fc2/bias"),
)

HUGGING_FACE = Layout(
    name="huggingface",
    about="transformers (Hugging Face)",
    # The last ones are of files that training code of one's own has saved.
    prefixes=("videomae.", *WRAPPERS, "model."),
    ignored=COUNTERS,
    landmark="embeddings.patch_embeddings.projection.weight",
    settings="transformers",
    encoder_prefix={"VideoClassifier": "videomae.", "VideoPretrainer": "videomae."},
    rules=(
        Rule(
            "embeddings.patch_embeddings.projection.weight",
            "encoder/patch_embed/kernel",
            FLAT_KERNEL,
        ),
        Rule("embeddings.patch_embeddings.projection.bias", "encoder/patch_embed/bias"),
        *block_rules(HUGGING_FACE_BLOCK, "encoder.layer", "encoder/layers"),
        Rule("layernorm.weight", "encoder/norm/scale"),
        Rule("layernorm.bias", "encoder/norm/bias"),
        Rule("classifier.weight", "classifier/kernel", TRANSPOSED),
        Rule("classifier.bias", "classifier/bias"),
        *block_rules(HUGGING_FACE_BLOCK, "decoder.decoder_layers", "decoder/layers"),
        *SHARED,
    ),
)

# --- the original code, VideoMAE V2, and all that grew from them ----------------------------------

# Of a block, but for its MLP.
TIMM_BLOCK = (
    Rule("norm1.weight", "norm_1/scale"),
    Rule("norm1.bias", "norm_1/bias"),
    # [3D, D]: q, k, v in thirds.
    Rule("attn.qkv.weight", "attention/qkv/kernel", TRANSPOSED),
    Rule("attn.q_bias", "attention/qkv/query_bias"),
    Rule("attn.v_bias", "attention/qkv/value_bias"),
    # V2's cosine attention.
    Rule("attn.scale", "attention/logit_scale", HEAD_SCALES),
    Rule("attn.proj.weight", "attention/proj/kernel", TRANSPOSED),
    Rule("attn.proj.bias", "attention/proj/bias"),
    Rule("gamma_1", "scale_1/gamma"),
    Rule("norm2.weight", "norm_2/scale"),
    Rule("norm2.bias", "norm_2/bias"),
    Rule("gamma_2", "scale_2/gamma"),
)

# Beside the blocks, but for the patch embedding and the head.
TIMM_ENCODER = (
    # Where a file has them: learnt ones. A stored sinusoid is left out before any rule is asked.
    Rule("pos_embed", "encoder/pos_embed", POSITIONS),
    Rule("norm.weight", "encoder/norm/scale"),
    Rule("norm.bias", "encoder/norm/bias"),
)

ORIGINAL_BLOCK = (
    *TIMM_BLOCK,
    Rule("mlp.fc1.weight", "mlp/fc1/kernel", TRANSPOSED),
    Rule("mlp.fc1.bias", "mlp/fc1/bias"),
    Rule("mlp.fc2.weight", "mlp/fc2/kernel", TRANSPOSED),
    Rule("mlp.fc2.bias", "mlp/fc2/bias"),
)

ORIGINAL = Layout(
    name="original",
    about="MCG-NJU/VideoMAE and OpenGVLab/VideoMAEv2 (.pth)",
    # Detection code bases, Lightning, the encoder of a pre-training file.
    prefixes=(*WRAPPERS, "backbone.", "model.", "encoder."),
    ignored=COUNTERS,
    landmark="patch_embed.proj.weight",
    encoder_prefix={"VideoPretrainer": "encoder."},
    rules=(
        Rule("patch_embed.proj.weight", "encoder/patch_embed/kernel", FLAT_KERNEL),
        Rule("patch_embed.proj.bias", "encoder/patch_embed/bias"),
        *block_rules(ORIGINAL_BLOCK, "blocks", "encoder/layers"),
        *TIMM_ENCODER,
        Rule("head.weight", "classifier/kernel", TRANSPOSED),
        Rule("head.bias", "classifier/bias"),
        *block_rules(ORIGINAL_BLOCK, "decoder.blocks", "decoder/layers"),
        *SHARED,
    ),
)

V2_HUB = Layout(
    name="videomae-v2-hub",
    about="OpenGVLab/VideoMAEv2 on the hub",
    prefixes=(),
    landmark="model.patch_embed.proj.weight",
    settings="model_config",
    rules=prefixed("model.", ORIGINAL.rules),
)

MMACTION2_BLOCK = (
    *TIMM_BLOCK,
    Rule("mlp.layers.0.0.weight", "mlp/fc1/kernel", TRANSPOSED),
    Rule("mlp.layers.0.0.bias", "mlp/fc1/bias"),
    Rule("mlp.layers.1.weight", "mlp/fc2/kernel", TRANSPOSED),
    Rule("mlp.layers.1.bias", "mlp/fc2/bias"),
)

MMACTION2 = Layout(
    name="mmaction2",
    about="open-mmlab/mmaction2 (.pth)",
    prefixes=(*WRAPPERS, "backbone."),
    landmark="patch_embed.projection.weight",
    ignored=(
        *COUNTERS,
        (r"data_preprocessor\.(mean|std)$", "the preprocessing's constants, which are known"),
        (r"roi_head\.", "a detection head, which classifies regions and not clips"),
    ),
    rules=(
        Rule("patch_embed.projection.weight", "encoder/patch_embed/kernel", FLAT_KERNEL),
        Rule("patch_embed.projection.bias", "encoder/patch_embed/bias"),
        *block_rules(MMACTION2_BLOCK, "blocks", "encoder/layers"),
        *TIMM_ENCODER,
        Rule("fc_norm.weight", "fc_norm/scale"),
        Rule("fc_norm.bias", "fc_norm/bias"),
        Rule("cls_head.fc_cls.weight", "classifier/kernel", TRANSPOSED),
        Rule("cls_head.fc_cls.bias", "classifier/bias"),
    ),
)

# The first whose landmark is there is taken.
LAYOUTS = (HUGGING_FACE, V2_HUB, ORIGINAL, MMACTION2)
