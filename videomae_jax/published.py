"""What was published of known checkpoints: the figures to hold an evaluation against.

Top-1 and top-5 of the model zoos of MCG-NJU/VideoMAE and OpenGVLab/VideoMAEv2, on the validation
sets of Kinetics-400 (5x3 views) and Something-Something v2 (2x3).
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple


class Figures(NamedTuple):
    """Shares from 0 to 1; `top5` is None where only top-1 was published.

    num_heads: of the network as it was trained; the published config of a small one says 16.
    """

    name: str
    top1: float
    top5: float | None
    views: str
    num_heads: int


# The repository's or the file's name, without owner and suffix; classes -> figures.
PUBLISHED: dict[str, dict[int, Figures]] = {
    "videomae-small-finetuned-kinetics": {
        400: Figures("VideoMAE S, Kinetics-400", 0.790, 0.938, "5x3", 6)
    },
    "videomae-base-short-finetuned-kinetics": {
        400: Figures("VideoMAE B (800 epochs), Kinetics-400", 0.800, 0.944, "5x3", 12)
    },
    "videomae-base-finetuned-kinetics": {
        400: Figures("VideoMAE B (1600 epochs), Kinetics-400", 0.815, 0.951, "5x3", 12)
    },
    "videomae-large-finetuned-kinetics": {
        400: Figures("VideoMAE L, Kinetics-400", 0.852, 0.968, "5x3", 16)
    },
    "videomae-huge-finetuned-kinetics": {
        400: Figures("VideoMAE H, Kinetics-400", 0.866, 0.971, "5x3", 16)
    },
    "videomae-small-finetuned-ssv2": {
        174: Figures("VideoMAE S, Something-Something v2", 0.668, 0.903, "2x3", 6)
    },
    "videomae-base-finetuned-ssv2": {
        174: Figures("VideoMAE B (2400 epochs), Something-Something v2", 0.708, 0.924, "2x3", 12)
    },
    "vit_s_k710_dl_from_giant": {
        710: Figures("VideoMAE V2 S (distilled), Kinetics-710", 0.776, None, "5x3", 6),
        400: Figures("VideoMAE V2 S (distilled), Kinetics-400", 0.837, None, "5x3", 6),
        600: Figures("VideoMAE V2 S (distilled), Kinetics-600", 0.831, None, "5x3", 6),
    },
    "vit_b_k710_dl_from_giant": {
        710: Figures("VideoMAE V2 B (distilled), Kinetics-710", 0.815, None, "5x3", 12),
        400: Figures("VideoMAE V2 B (distilled), Kinetics-400", 0.866, None, "5x3", 12),
        600: Figures("VideoMAE V2 B (distilled), Kinetics-600", 0.859, None, "5x3", 12),
    },
}


def published_figures(conversion: Mapping[str, Any], num_labels: int) -> Figures | None:
    """The figures of the checkpoint that a conversion report tells of, or None if it is unknown.

    By the id on the hub, or the names in the path that was converted: of the repository's folder,
    of the hub's cache, or of a file.
    """
    source = conversion.get("source")
    if not isinstance(source, Mapping):
        return None
    hub = source.get("hub")
    said = hub.get("id") if isinstance(hub, Mapping) else source.get("path")
    # The hub's cache names folders models--OWNER--NAME.
    for part in re.split(r"[/\\]|--", str(said).lower()):
        figures = PUBLISHED.get(re.sub(r"\.(pth|pt|bin|safetensors)$", "", part))
        if figures is not None:
            return figures.get(num_labels)
    return None
