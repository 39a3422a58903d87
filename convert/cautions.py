"""What a user should know before trusting a conversion, each in a sentence or two."""

from collections.abc import Mapping, Sequence
from typing import Any

from convert.settings import HEAD_DIMS
from videomae_jax.config import VideoMAEConfig

# Of the preprocessing: what the pixel values depend on, rather than which pixels are taken.
COLOUR_FIELDS = (
    "do_rescale",
    "do_normalize",
    "rescale_factor",
    "image_mean",
    "image_std",
)


def cautions(report: Mapping[str, Any]) -> list[str]:
    """The warnings that a conversion report calls for."""
    network, preprocessing = report["network"], report["preprocessing"]
    config = VideoMAEConfig.from_dict(network["config"])
    found = [
        about_heads(config),
        _about_biases(report["statistics"]["bias_norms"]),
        _about_preprocessing(preprocessing),
        _about_labels(report["labels"]),
        _about_averaged(report["source"]["averaged_entry"]),
        _about_assumptions(network["assumed"], config),
    ]
    return [text for text in found if text is not None]


def about_heads(config: VideoMAEConfig) -> str | None:
    """The head-count trap, if the config has other heads than the published models that wide."""
    trained = HEAD_DIMS.get(config.hidden_size, config.head_dim)
    if config.head_dim == trained:
        return None
    heads = config.hidden_size // trained
    text = (
        f"{config.num_attention_heads} heads of {config.head_dim}: models {config.hidden_size} "
        f"wide were trained by the original code with {heads} heads of {trained}. "
    )
    if config.hidden_size == 384:
        text += (
            f"The published config of the small models says 16, which is how transformers "
            f"runs them; the published accuracy most likely means {heads}. "
        )
    return f"{text}Convert again with --num-heads {heads} and compare."


def _about_biases(norms: Mapping[str, list[float]]) -> str | None:
    if not norms or any(largest for _, largest in norms.values()):
        return None
    return (
        "All query and value biases are zero. No trained model is like that, but early releases of "
        "transformers 5 lost these biases without a word: look for the file from before."
    )


def _about_preprocessing(preprocessing: Mapping[str, Any]) -> str | None:
    if preprocessing["source"] == "assumed":
        return (
            "No preprocessor_config.json: preprocessing is assumed, mean and std 0.5 as in "
            "transformers. A wrong mean or resize rule costs accuracy without a word."
        )
    # How a Hugging Face folder's frames are resized is always another than the original's.
    colours = [name for name in preprocessing["differs_in"] if name in COLOUR_FIELDS]
    if not colours:
        return None
    return (
        f"{preprocessing['source']} has another {' and '.join(colours)} than the original code "
        f"trained with (ImageNet's mean and std). If the weights are the published ones, accuracy "
        f"suffers."
    )


def _about_labels(labels: Mapping[str, Any]) -> str | None:
    if labels["source"] != "assumed":
        return None
    return "No class names: LABEL_0, LABEL_1, ... are used. Say --labels FILE."


def _about_averaged(entry: str | None) -> str | None:
    if entry is None:
        return None
    return f"The file also holds averaged weights ({entry}): --weights ema takes those."


def _about_assumptions(assumed: Sequence[str], config: VideoMAEConfig) -> str | None:
    """What neither the file nor the user said, each with the option that says it."""
    texts = {
        "num_attention_heads": f"{config.num_attention_heads} heads of {config.head_dim} "
        f"(--num-heads)",
        "image_size": f"{' x '.join(map(str, config.image_size))} pixels (--image-size)",
        "num_frames": f"{config.num_frames} frames (--num-frames)",
        "decoder_num_attention_heads": f"{config.decoder_num_attention_heads} decoder heads "
        f"(--decoder-num-heads)",
    }
    if not assumed:
        return None
    said = ", ".join(texts[field] for field in assumed)
    return f"The file doesn't tell, so these are assumed: {said}."
