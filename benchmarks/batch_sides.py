"""The sides of `benchmarks.batch`, each in processes of its own; figures come back as JSON."""

import contextlib
import dataclasses
import io
import json
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import usable_cores

# The loop of transformers' documentation: as many frames as the model takes, chosen over the whole
# video, by PyAV, which decodes with all cores; then the processor, then the model.
PLAIN_LOOP = """
import json, sys, time
import av, numpy as np, torch
from transformers import VideoMAEForVideoClassification, VideoMAEImageProcessorPil

folder, count, *paths = sys.argv[1:]
processor = VideoMAEImageProcessorPil.from_pretrained(folder)
model = VideoMAEForVideoClassification.from_pretrained(folder).eval()

def read(path):
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        wanted = set(np.arange(16) * stream.frames // 16)
        return [frame.to_ndarray(format="rgb24")
                for index, frame in enumerate(container.decode(stream)) if index in wanted]

def best(path):
    inputs = processor(read(path), return_tensors="pt")
    with torch.inference_mode():
        logits = model(**inputs).logits[0]
    return [model.config.id2label[index.item()] for index in logits.topk(5).indices]

best(paths[0])
start = time.perf_counter()
labels = [best(paths[number % len(paths)]) for number in range(int(count))]
seconds = time.perf_counter() - start
print(json.dumps({"videos_per_s": len(labels) / seconds, "seconds": seconds, "labels": labels}))
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Models:
    """Folders: small, for transformers and converted, and tiny, converted, for the same clips."""

    transformers: Path
    small: Path
    tiny: Path


def write_models(folder: Path) -> Models:
    """Untrained ones; no bias is 0."""
    from benchmarks.checkpoints import write_checkpoint
    from convert.__main__ import main as convert
    from videomae_jax.config import VARIANTS, VideoMAEConfig

    configs = {
        "small": dataclasses.replace(VARIANTS["small"], num_labels=400),
        "tiny": VideoMAEConfig(
            patch_size=(32, 32),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=16,
            num_labels=10,
        ),
    }
    for name, config in configs.items():
        source = folder / f"{name}-source"
        write_checkpoint(source, config, "VideoClassifier", "safetensors")
        # As transformers' own preprocessor would be saved.
        settings = {"image_processor_type": "VideoMAEImageProcessorPil"}
        (source / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
        with contextlib.redirect_stdout(io.StringIO()):
            code = convert([str(source), str(folder / name)])
        if code:
            raise RuntimeError(f"{name} could not be converted")
    return Models(
        transformers=folder / "small-source", small=folder / "small", tiny=folder / "tiny"
    )


def plain_loop(clips: Sequence[Path], model: Path, count: int) -> dict[str, Any]:
    """Videos/s of the loop, from the second video on, and the five best classes of each."""
    return json.loads(_run(["-c", PLAIN_LOOP, str(model), str(count), *map(str, clips)]).stdout)


def ours(
    clips: Sequence[Path], model: Path, count: int, out: Path, *, batch: int | None = None
) -> dict[str, Any]:
    """What the job says of itself, its compilation included, and the five best classes."""
    import pyarrow.dataset

    manifest = out.with_suffix(".txt")
    manifest.write_text("".join(f"{clips[number % len(clips)]}\n" for number in range(count)))
    options = [] if batch is None else ["--batch", str(batch)]
    command = ["-m", "tpu", "run", str(manifest), str(out), "--model", str(model), *options]
    figures = json.loads(_run(command).stderr.splitlines()[-1])
    rows = pyarrow.dataset.dataset(out).to_table(columns=["row", "labels"]).sort_by("row")
    return {**figures, "labels": rows["labels"].to_pylist()}


def decode_only(clips: Sequence[Path], model: Path, count: int) -> dict[str, Any]:
    """Videos/s of a process a core that reads and resizes, and does nothing else."""
    context = multiprocessing.get_context("spawn")
    paths = [str(clips[number % len(clips)]) for number in range(count)]
    with context.Pool(usable_cores(), _prepare, (str(model),)) as pool:
        pool.map(_read, paths[: 2 * usable_cores()], chunksize=1)
        start = time.perf_counter()
        for _ in pool.imap_unordered(_read, paths, chunksize=4):
            pass
        seconds = time.perf_counter() - start
    return {"videos_per_s": count / seconds, "seconds": seconds}


def _prepare(model: str) -> None:
    import numpy as np

    from tpu.reading import Reading
    from videomae_jax.checkpoint import load_description
    from videomae_jax.views import Views

    description = load_description(model)
    reading = Reading.of(description.config, description.preprocess, Views())
    reading.prepare()
    _worker.update(reading=reading, clips=np.empty(reading.shape, np.uint8))


def _read(path: str) -> None:
    _worker["reading"].read(path, _worker["clips"])


# Of a process of the pool, whose functions take a path alone.
_worker: dict[str, Any] = {}


def _run(arguments: list[str]) -> subprocess.CompletedProcess:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{arguments[1]} ended with {done.returncode}: {done.stderr[-500:]}")
    return done
