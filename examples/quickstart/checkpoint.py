"""Write an untrained VideoMAE classifier as a Hugging Face folder.

    python -m examples.quickstart.checkpoint OUT

OUT gets config.json, preprocessor_config.json, model.safetensors and a README.md: ViT-S at its
published size (384 wide, 12 layers, 6 heads, 16 frames of 224x224) with twelve motion classes.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import VideoMAEForVideoClassification

MOTIONS = (
    "left",
    "right",
    "up",
    "down",
    "in",
    "out",
    "turning left",
    "turning right",
    "bouncing",
    "meeting",
    "parting",
    "still",
)

README = """\
# Untrained VideoMAE ViT-S

Every weight is a random number with a fixed seed. What it predicts means nothing; it is here to be
converted and verified. Written by `python -m examples.quickstart.checkpoint`.
"""


def make_checkpoint(directory: Path, *, seed: int = 0) -> None:
    """Write the folder, whole or not at all; the same seed gives the same weights.

    Raises:
        FileExistsError: when `directory` exists, which is left as it is.
    """
    if os.path.lexists(directory):
        raise FileExistsError(f"{directory} exists: name a new folder, or remove it first")
    from transformers import VideoMAEImageProcessorPil
    from transformers.utils import logging

    logging.disable_progress_bar()
    partial = directory.with_name(f".{directory.name}-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        untrained_model(seed).save_pretrained(partial)
        VideoMAEImageProcessorPil().save_pretrained(partial)
        (partial / "README.md").write_text(README, encoding="utf-8")
        partial.rename(directory)
    except BaseException:
        shutil.rmtree(partial)
        raise


def untrained_model(seed: int) -> "VideoMAEForVideoClassification":
    """A ViT-S with random weights, biases and norms.

    transformers starts biases at 0 and norms at 1, where a converter that drops or swaps them goes
    unseen; so here every parameter is drawn.
    """
    import torch
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    model = VideoMAEForVideoClassification(
        VideoMAEConfig(
            hidden_size=384,
            num_hidden_layers=12,
            num_attention_heads=6,
            intermediate_size=1536,
            id2label=dict(enumerate(MOTIONS)),
            label2id={motion: index for index, motion in enumerate(MOTIONS)},
        )
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            else:
                is_norm_scale = "norm" in name and name.endswith("weight")
                parameter.copy_(float(is_norm_scale) + 0.1 * noise)
    return model


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.quickstart.checkpoint", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; must not exist")
    out = parser.parse_args(argv).out
    try:
        make_checkpoint(out)
    except OSError as error:
        parser.exit(2, f"checkpoint: error: {error}\n")
    except ImportError:
        wanted = "torch and transformers are needed: pip install 'videomae-jax[verify]'"
        parser.exit(2, f"checkpoint: error: {wanted}\n")
    print(f"wrote {out}: an untrained ViT-S with {len(MOTIONS)} classes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
