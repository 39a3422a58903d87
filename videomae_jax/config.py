"""What shape is the network? One frozen dataclass with Hugging Face's field names, and a table."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from videomae_jax.fields import refuse_unknown

# Attention among more is out of the question, and a table of positions for them out of memory.
MOST_TOKENS = 2**17
# Fields that directories converted by version 0.1 don't have; their defaults are what it did.
ADDED_LATER = frozenset({"cos_attn", "layer_scale_init_value", "use_learnable_pos_emb"})
# Fields that transformers' VideoMAEConfig doesn't have: in its files they would change nothing.
BEYOND_HF = ADDED_LATER | {"fc_norm_eps", "decoder_norm_eps"}
# The names in `activations.ACTIVATIONS`; plain data needs no JAX.
HIDDEN_ACTS = tuple(
    """
    gelu gelu_python gelu_10 gelu_accurate gelu_fast gelu_new gelu_python_tanh gelu_pytorch_tanh
    hardswish laplace leaky_relu linear mish quick_gelu relu relu2 relu6 sigmoid silu sqrtsoftplus
    swish tanh
    """.split()
)
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoMAEConfig:
    """Sizes and options of a VideoMAE network, checked when built.

    Field names and defaults are those of transformers' `VideoMAEConfig`, except:
    `qkv_bias` is the published files' name (transformers 5 says `qv_bias`: the key never has one);
    `image_size` and `patch_size` are kept as (height, width), a single number stands for both;
    `fc_norm_eps` and `decoder_norm_eps` are named here because transformers builds those two norms
    with torch's default 1e-5, while the original code has 1e-6 everywhere;
    and options of the original code that transformers lacks: `cos_attn` (VideoMAE V2's attention by
    angles), `layer_scale_init_value` (a learnt factor on each branch of a block, starting here; 0:
    none), `use_learnable_pos_emb` (learnt positions in place of the sinusoids).

    Raises:
        ValueError: for any value that no network can be built from, naming the field.
    """

    image_size: tuple[int, int] = (224, 224)
    patch_size: tuple[int, int] = (16, 16)
    num_channels: int = 3
    num_frames: int = 16
    tubelet_size: int = 2
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    fc_norm_eps: float = 1e-5
    decoder_norm_eps: float = 1e-5
    qkv_bias: bool = True
    use_mean_pooling: bool = True
    decoder_num_attention_heads: int = 6
    decoder_hidden_size: int = 384
    decoder_num_hidden_layers: int = 4
    decoder_intermediate_size: int = 1536
    norm_pix_loss: bool = True
    cos_attn: bool = False
    layer_scale_init_value: float = 0.0
    use_learnable_pos_emb: bool = False
    num_labels: int = 2
    problem_type: str | None = None

    def __post_init__(self):
        for name, value in _typed(vars(self)).items():
            object.__setattr__(self, name, value)
        _check_ranges(self)
        _check_relations(self)

    @property
    def num_tokens(self) -> int:
        """L: tubelets of a clip, in (time, height, width) order."""
        return math.prod(self.grid)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tubelets along (time, height, width)."""
        (height, width), (patch_height, patch_width) = self.image_size, self.patch_size
        return self.num_frames // self.tubelet_size, height // patch_height, width // patch_width

    @property
    def tubelet_pixels(self) -> int:
        """P: values in a tubelet, all colours."""
        return self.tubelet_size * math.prod(self.patch_size) * self.num_channels

    @property
    def head_dim(self) -> int:
        """K: width of an attention head of the encoder."""
        return self.hidden_size // self.num_attention_heads

    @property
    def clip_shape(self) -> tuple[int, int, int, int]:
        """(T, H, W, C): the shape of one clip."""
        return self.num_frames, *self.image_size, self.num_channels

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "VideoMAEConfig":
        """The inverse of `to_dict`: every field present but those of later versions, none unknown.

        Raises:
            ValueError: for a missing, unknown or impossible entry, naming it.
        """
        refuse_unknown(fields, _field_names(), what="config")
        missing = sorted(_field_names() - ADDED_LATER - set(fields))
        if missing:
            raise ValueError(f"config lacks {', '.join(missing)}")
        return cls(**_typed(fields))

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> "VideoMAEConfig":
        """From the contents of a Hugging Face `config.json` (`VideoMAEConfig.to_dict()`).

        Fields that it lacks get transformers' defaults (two labels, for one). Entries that every
        transformers config has and that do not touch the network are passed over.

        Raises:
            ValueError: for an unknown, impossible or contradictory entry, naming it.
        """
        fields = dict(fields)
        if fields.get("model_type", "videomae") != "videomae":
            raise ValueError(f"model_type must be 'videomae', got {fields['model_type']!r}")
        if fields.get("pruned_heads"):
            raise ValueError("pruned_heads is not supported: the heads must be whole")
        num_labels = _num_labels(fields)
        qkv_bias = _qkv_bias(fields)
        hf_names = _field_names() - BEYOND_HF
        refuse_unknown(fields, hf_names | GENERIC_HF_FIELDS, what="config")
        known = {name: fields[name] for name in hf_names & set(fields)}
        return cls(**_typed(known | {"num_labels": num_labels, "qkv_bias": qkv_bias}))

    def to_hf(self) -> dict[str, Any]:
        """The inverse of `from_hf`: entries of a `config.json` as transformers 4 and 5 read it.

        What transformers has no entry for (`BEYOND_HF`) is left out.
        """
        fields = {name: value for name, value in self.to_dict().items() if name not in BEYOND_HF}
        # Its decoder squares patch_size, so a square one must be a number.
        for name in ("image_size", "patch_size"):
            height, width = fields[name]
            fields[name] = height if height == width else [height, width]
        # transformers 4 reads the one spelling, 5 the other.
        return fields | {"model_type": "videomae", "qv_bias": self.qkv_bias}


def _field_names() -> set[str]:
    return {field.name for field in dataclasses.fields(VideoMAEConfig)}


def _typed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields as the types they are declared with; a number where a pair is wanted is both."""
    types = {field.name: field.type for field in dataclasses.fields(VideoMAEConfig)}
    return {name: _as_type(name, value, types[name]) for name, value in fields.items()}


def _as_type(name: str, value: Any, wanted: Any) -> Any:
    if wanted == tuple[int, int]:
        pair = list(value) if isinstance(value, (list, tuple)) else [value, value]
        if len(pair) != 2:
            raise ValueError(f"{name} must be a number or [height, width], got {value!r}")
        return tuple(_as_type(name, side, int) for side in pair)
    # bool is an int to Python, never to a config.
    if wanted is not bool and isinstance(value, bool):
        raise ValueError(f"{name} must be {_type_name(wanted)}, got {value!r}")
    if wanted is float and isinstance(value, int):
        return float(value)
    if not isinstance(value, wanted):
        raise ValueError(f"{name} must be {_type_name(wanted)}, got {value!r}")
    return value


def _type_name(wanted: Any) -> str:
    return getattr(wanted, "__name__", str(wanted))


def _check_ranges(config: VideoMAEConfig) -> None:
    for field in dataclasses.fields(config):
        name, value = field.name, getattr(config, field.name)
        if name == "num_labels":
            if value < 0:
                raise ValueError(f"num_labels must be at least 0, got {value}")
        elif field.type in (int, tuple[int, int]):
            if min(value if isinstance(value, tuple) else (value,)) < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        elif name.endswith("_prob"):
            if not 0.0 <= value < 1.0:
                raise ValueError(f"{name} must be in [0, 1), got {value}")
        elif field.type is float and not (math.isfinite(value) and value >= 0.0):
            raise ValueError(f"{name} must be finite and not negative, got {value}")


def _check_relations(config: VideoMAEConfig) -> None:
    if config.hidden_act not in HIDDEN_ACTS:
        raise ValueError(
            f"hidden_act {config.hidden_act!r} is not supported; one of: {', '.join(HIDDEN_ACTS)}"
        )
    if config.problem_type not in (None, *PROBLEM_TYPES):
        raise ValueError(
            f"problem_type must be one of {', '.join(PROBLEM_TYPES)}, got {config.problem_type!r}"
        )
    multiples = [
        ("hidden_size", config.hidden_size, "num_attention_heads", config.num_attention_heads),
        ("num_frames", config.num_frames, "tubelet_size", config.tubelet_size),
        ("image_size height", config.image_size[0], "patch_size height", config.patch_size[0]),
        ("image_size width", config.image_size[1], "patch_size width", config.patch_size[1]),
    ]
    for name, value, divisor_name, divisor in multiples:
        if value % divisor:
            raise ValueError(f"{name} {value} is not a multiple of {divisor_name} {divisor}")
    if config.num_tokens > MOST_TOKENS:
        raise ValueError(
            f"num_frames {config.num_frames} and image_size {list(config.image_size)} make "
            f"{config.num_tokens} tokens, more than {MOST_TOKENS}"
        )


def _num_labels(fields: Mapping[str, Any]) -> Any:
    id2label = fields.get("id2label")
    if id2label is not None and not isinstance(id2label, Mapping):
        raise ValueError(f"id2label must map class numbers to names, got {type(id2label).__name__}")
    counted = len(id2label) if id2label is not None else None
    said = fields.get("num_labels", counted)
    if counted is not None and said != counted:
        raise ValueError(f"num_labels {said!r} contradicts id2label, which names {counted}")
    return 2 if said is None else said


def _qkv_bias(fields: dict[str, Any]) -> Any:
    qv_bias = fields.pop("qv_bias", None)
    qkv_bias = fields.get("qkv_bias", qv_bias)
    if qv_bias is not None and qv_bias != qkv_bias:
        raise ValueError(f"qv_bias {qv_bias!r} contradicts qkv_bias {qkv_bias!r}")
    return True if qkv_bias is None else qkv_bias


# What transformers 4 and 5 write into any config.json; none of it changes this network.
GENERIC_HF_FIELDS = frozenset(
    """
    _attn_implementation _attn_implementation_internal _commit_hash _name_or_path
    add_cross_attention architectures attn_implementation auto_map bad_words_ids
    begin_suppress_tokens bos_token_id chunk_size_feed_forward cross_attention_hidden_size
    decoder_start_token_id diversity_penalty do_sample dtype early_stopping
    encoder_no_repeat_ngram_size eos_token_id experts_implementation
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
    gradient_checkpointing id2label is_decoder is_encoder_decoder label2id length_penalty
    max_length min_length model_type no_repeat_ngram_size num_beam_groups num_beams
    num_return_sequences output_attentions output_hidden_states output_scores pad_token_id
    prefix pruned_heads quantization_config remove_invalid_values repetition_penalty return_dict
    return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature
    tf_legacy_loss tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p
    torch_dtype torchscript transformers_version typical_p use_bfloat16 use_cache
    """.split()
)


def _variant(
    width: int, layers: int, heads: int, *, decoder: tuple[int, int, int], **fields: Any
) -> VideoMAEConfig:
    decoder_width, decoder_heads, decoder_layers = decoder
    sizes = VideoMAEConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        decoder_hidden_size=decoder_width,
        decoder_num_attention_heads=decoder_heads,
        decoder_num_hidden_layers=decoder_layers,
        decoder_intermediate_size=4 * decoder_width,
        num_labels=400,
    )
    return dataclasses.replace(sizes, **fields)


# As trained by the original code ("giant": VideoMAE V2), Kinetics-400 heads. The published Hugging
# Face config of "small" says 16 heads instead of 6: see the head-count trap in the README.
VARIANTS: dict[str, VideoMAEConfig] = {
    "small": _variant(384, 12, 6, decoder=(192, 3, 4)),
    "base": _variant(768, 12, 12, decoder=(384, 6, 4)),
    "large": _variant(1024, 24, 16, decoder=(512, 8, 12)),
    "huge": _variant(1280, 32, 16, decoder=(640, 8, 12)),
    "giant": _variant(
        1408, 40, 16, decoder=(512, 8, 4), patch_size=(14, 14), intermediate_size=6144
    ),
}
