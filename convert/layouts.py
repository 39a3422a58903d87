"""The weight maps: a table a layout, side by side.

A rule says which source names it takes, where they go, and how the array changes on the way. `{n}`
in both is a layer. A target is a path in the parameter tree of `videomae_jax`, written for a model
with a head ("encoder/..."); of a bare encoder the same without that prefix. `part` is the third of
a packed kernel that one of q, k, v fills.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable

import numpy as np

PARTS = ("query", "key", "value")


def same(array: np.ndarray) -> np.ndarray:
    """The array as it is."""
    return array


def transposed(array: np.ndarray) -> np.ndarray:
    """torch keeps a linear layer's weights [out, in]; Flax keeps [in, out]."""
    return array.T


def flat_kernel(array: np.ndarray) -> np.ndarray:
    """3-D convolution [D, C, p0, p1, p2] -> kernel [P, D] of tubelets flattened (p0, p1, p2, c)."""
    return array.transpose(2, 3, 4, 1, 0).reshape(-1, array.shape[0])


def flat(array: np.ndarray) -> np.ndarray:
    """The mask token [1, 1, D] -> [D]."""
    return array.reshape(-1)


@dataclasses.dataclass(frozen=True)
class Rule:
    """Tensors named like `pattern` go to `target`, changed by `change`."""

    pattern: str
    target: str
    change: Callable[[np.ndarray], np.ndarray] = same
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """How one code base names its weights.

    `prefixes` are taken off a name, in any order and number, before any rule sees it. `landmark` is
    the rule-side name that every file of this layout has. `has_config` says that a config.json
    belongs to it.
    """

    name: str
    prefixes: tuple[str, ...]
    landmark: str
    rules: tuple[Rule, ...]
    has_config: bool

    def strip(self, name: str) -> str:
        """`name` as the rules know it."""
        return re.sub(f"^({'|'.join(map(re.escape, self.prefixes))})+", "", name)

    def find(self, name: str) -> tuple[Rule, int] | None:
        """The rule that takes `name`, stripped, and the layer it speaks of."""
        for rule in self.rules:
            layer = rule.match(name)
            if layer is not None:
                return rule, layer
        return None


# Both code bases name these alike.
SHARED = (
    Rule("fc_norm.weight", "fc_norm/scale"),
    Rule("fc_norm.bias", "fc_norm/bias"),
    Rule("encoder_to_decoder.weight", "encoder_to_decoder/kernel", transposed),
    Rule("mask_token", "mask_token", flat),
    Rule("decoder.norm.weight", "decoder/norm/scale"),
    Rule("decoder.norm.bias", "decoder/norm/bias"),
    Rule("decoder.head.weight", "decoder/head/kernel", transposed),
    Rule("decoder.head.bias", "decoder/head/bias"),
)

HUGGING_FACE_BLOCK = (
    Rule("layernorm_before.weight", "norm_1/scale"),
    Rule("layernorm_before.bias", "norm_1/bias"),
    Rule("attention.attention.query.weight", "attention/qkv/kernel", transposed, "query"),
    Rule("attention.attention.key.weight", "attention/qkv/kernel", transposed, "key"),
    Rule("attention.attention.value.weight", "attention/qkv/kernel", transposed, "value"),
    # Published files say q_bias and v_bias; the state_dict of transformers 5 says query.bias.
    Rule("attention.attention.q_bias", "attention/qkv/query_bias"),
    Rule("attention.attention.v_bias", "attention/qkv/value_bias"),
    Rule("attention.attention.query.bias", "attention/qkv/query_bias"),
    Rule("attention.attention.value.bias", "attention/qkv/value_bias"),
    Rule("attention.output.dense.weight", "attention/proj/kernel", transposed),
    Rule("attention.output.dense.bias", "attention/proj/bias"),
    Rule("layernorm_after.weight", "norm_2/scale"),
    Rule("layernorm_after.bias", "norm_2/bias"),
    Rule("intermediate.dense.weight", "mlp/fc1/kernel", transposed),
    Rule("intermediate.dense.bias", "mlp/fc1/bias"),
    Rule("output.dense.weight", "mlp/fc2/kernel", transposed),
    Rule("output.dense.bias", "mlp/fc2/bias"),
)

HUGGING_FACE = Layout(
    name="huggingface",
    prefixes=("videomae.",),
    landmark="embeddings.patch_embeddings.projection.weight",
    has_config=True,
    rules=(
        Rule(
            "embeddings.patch_embeddings.projection.weight",
            "encoder/patch_embed/kernel",
            flat_kernel,
        ),
        Rule("embeddings.patch_embeddings.projection.bias", "encoder/patch_embed/bias"),
        *block_rules(HUGGING_FACE_BLOCK, "encoder.layer", "encoder/layers"),
        Rule("layernorm.weight", "encoder/norm/scale"),
        Rule("layernorm.bias", "encoder/norm/bias"),
        Rule("classifier.weight", "classifier/kernel", transposed),
        Rule("classifier.bias", "classifier/bias"),
        *block_rules(HUGGING_FACE_BLOCK, "decoder.decoder_layers", "decoder/layers"),
        *SHARED,
    ),
)

ORIGINAL_BLOCK = (
    Rule("norm1.weight", "norm_1/scale"),
    Rule("norm1.bias", "norm_1/bias"),
    # [3D, D]: q, k, v in thirds.
    Rule("attn.qkv.weight", "attention/qkv/kernel", transposed),
    Rule("attn.q_bias", "attention/qkv/query_bias"),
    Rule("attn.v_bias", "attention/qkv/value_bias"),
    Rule("attn.proj.weight", "attention/proj/kernel", transposed),
    Rule("attn.proj.bias", "attention/proj/bias"),
    Rule("norm2.weight", "norm_2/scale"),
    Rule("norm2.bias", "norm_2/bias"),
    Rule("mlp.fc1.weight", "mlp/fc1/kernel", transposed),
    Rule("mlp.fc1.bias", "mlp/fc1/bias"),
    Rule("mlp.fc2.weight", "mlp/fc2/kernel", transposed),
    Rule("mlp.fc2.bias", "mlp/fc2/bias"),
)

ORIGINAL = Layout(
    name="original",
    # Data parallel, compiled, detection code bases, and the encoder of a pre-training file.
    prefixes=("module.", "_orig_mod.", "backbone.", "encoder."),
    landmark="patch_embed.proj.weight",
    has_config=False,
    rules=(
        Rule("patch_embed.proj.weight", "encoder/patch_embed/kernel", flat_kernel),
        Rule("patch_embed.proj.bias", "encoder/patch_embed/bias"),
        *block_rules(ORIGINAL_BLOCK, "blocks", "encoder/layers"),
        Rule("norm.weight", "encoder/norm/scale"),
        Rule("norm.bias", "encoder/norm/bias"),
        Rule("head.weight", "classifier/kernel", transposed),
        Rule("head.bias", "classifier/bias"),
        *block_rules(ORIGINAL_BLOCK, "decoder.blocks", "decoder/layers"),
        *SHARED,
    ),
)

LAYOUTS = (HUGGING_FACE, ORIGINAL)
