"""A training step of transformers and torch. Without JAX, whose memory is none of theirs."""

import dataclasses
import os
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.turns import Side

RATE, WEIGHT_DECAY = 1e-4, 0.05
CLASSES = {"finetune": "VideoMAEForVideoClassification", "pretrain": "VideoMAEForPreTraining"}


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A side that has done one step: its loss, and its gradient if that was asked for.

    Ours as one array; theirs by the names of their parameters.
    """

    side: Side
    loss: float
    gradient: Any = None


def prepare_theirs(
    task: str, source: Path, inputs: Mapping[str, np.ndarray], *, gradient: bool
) -> Prepared:
    """transformers' model with sdpa in float32, and torch's fused AdamW."""
    import torch
    import transformers

    model = getattr(transformers, CLASSES[task]).from_pretrained(
        source, attn_implementation="sdpa", dtype=torch.float32, local_files_only=True
    )
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY, fused=True
    )
    pixels = torch.from_numpy(np.ascontiguousarray(inputs["frames"].transpose(0, 1, 4, 2, 3)))
    given = {"labels": torch.from_numpy(inputs["labels"].astype(np.int64))}
    if task == "pretrain":
        given = {"bool_masked_pos": torch.from_numpy(inputs["mask"])}

    def backward() -> Any:
        optimizer.zero_grad(set_to_none=True)
        loss = model(pixel_values=pixels, **given).loss
        loss.backward()
        return loss

    def call() -> Any:
        loss = backward()
        optimizer.step()
        return loss

    found = None
    if gradient:
        backward()
        found = {name: value.grad.numpy().copy() for name, value in model.named_parameters()}
    return Prepared(Side(call, lambda result: result), float(call().detach()), found)


def peak_bytes() -> int:
    """The most memory that this process has had resident."""
    if os.path.exists("/proc/self/status"):
        with open("/proc/self/status", encoding="utf-8") as file:
            lines = dict(line.split(":", 1) for line in file)
        # Unlike ru_maxrss it begins with this program, not with what has started it.
        return int(lines["VmHWM"].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
