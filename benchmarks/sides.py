"""The same classifier on both sides, ours and transformers', with the same weights and clips.

Both get their clips on the device and in the dtype that they compute in, each in the order of axes
that its own preprocessing makes.
"""

import contextlib
import dataclasses
import functools
import gc
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.checkpoints import write_checkpoint
from benchmarks.machine import usable_cores
from benchmarks.turns import Side, in_turns
from convert import job
from videomae_jax.config import VideoMAEConfig
from videomae_jax.model import VideoClassifier

# Where torch computes for each backend of jax; the reference is computed there, too.
TORCH_DEVICES = {"cpu": "cpu", "gpu": "cuda"}


@dataclasses.dataclass(frozen=True)
class Network:
    """Random weights, as transformers' folder and as our parameters (NumPy, float32)."""

    folder: Path
    config: VideoMAEConfig
    params: Any


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A side that has run once: its logits, float32 [B, labels], and how long it took to be ready.

    For ours that is tracing, lowering and compiling; for theirs the first call.
    """

    side: Side
    logits: np.ndarray
    seconds_to_prepare: float


@contextlib.contextmanager
def network(config: VideoMAEConfig) -> Iterator[Network]:
    """A network with random weights, no bias 0 and no norm scale 1, converted by the converter."""
    with tempfile.TemporaryDirectory(prefix="benchmark_") as folder:
        source = write_checkpoint(Path(folder) / "source", config, "VideoClassifier", "safetensors")
        params = jax.tree.map(np.array, dict(job.convert(source).params))
        yield Network(source, config, params)


def draw_clips(config: VideoMAEConfig, batch: int) -> np.ndarray:
    """Noise [B, T, H, W, C], float32, each clip of a brightness and contrast of its own.

    Without those a network's answers to noise are all nearly the same. The first clips of a larger
    batch are those of a smaller one.
    """
    clips = []
    for number in range(batch):
        random = np.random.default_rng(number)
        noise = random.standard_normal(config.clip_shape, dtype=np.float32)
        clips.append(noise * random.uniform(0.3, 2) + random.uniform(-1, 1))
    return np.stack(clips).astype(np.float32)


def ours(config: VideoMAEConfig, params: Any, dtype: str) -> tuple[Any, Any, str]:
    """Our model: (a function of parameters and clips, the parameters, the clips' dtype).

    Another way to compute (int8, say) is another branch here and a row of `forward.PRECISIONS`.
    """
    model = VideoClassifier(config, dtype=dtype)
    cast = jax.tree.map(lambda leaf: jax.numpy.asarray(leaf, dtype), params)
    return (lambda params, clips: model.apply({"params": params}, clips)), cast, dtype


def prepare_ours(net: Network, clips: np.ndarray, dtype: str) -> Prepared:
    """Compile our side, nothing kept of programs that were compiled before."""
    function, params, clip_dtype = ours(net.config, net.params, dtype)
    params = jax.device_put(params)
    given = jax.block_until_ready(jax.numpy.asarray(clips, clip_dtype))
    jax.clear_caches()
    start = time.perf_counter()
    with float32_is_float32(dtype):
        compiled = jax.jit(function).lower(params, given).compile()
    seconds = time.perf_counter() - start
    logits = np.asarray(compiled(params, given), np.float32)
    return Prepared(Side(lambda: compiled(params, given), jax.block_until_ready), logits, seconds)


@contextlib.contextmanager
def float32_is_float32(dtype: str) -> Iterator[None]:
    """Keeps a GPU from multiplying float32 with 10 bits of fraction (TF32)."""
    # Elsewhere than on accelerators there is no such thing, and saying so may change the program.
    if dtype == "float32" and not on_cpu():
        with jax.default_matmul_precision("highest"):
            yield
    else:
        yield


def prepare_theirs(net: Network, clips: np.ndarray, dtype: str, way: str) -> Prepared:
    """transformers' model with sdpa, `way` "eager" or "compile", run once.

    The position table, which transformers keeps in main memory and copies in every call, is put on
    the device once: what is best for the other side.
    """
    import torch

    device = "cpu" if torch_is_elsewhere() else TORCH_DEVICES[jax.default_backend()]
    # As for ours: by default torch's convolutions take TF32, its other products don't.
    torch.backends.cudnn.allow_tf32 = False
    model = load_theirs(net.folder, getattr(torch, dtype)).to(device)
    embeddings = model.videomae.embeddings
    embeddings.position_embeddings = embeddings.position_embeddings.to(device)
    pixels = torch.from_numpy(np.ascontiguousarray(clips.transpose(0, 1, 4, 2, 3)))
    pixels = pixels.to(device, getattr(torch, dtype))
    run = compiled_theirs(model, device) if way == "compile" else model

    def call() -> Any:
        with torch.inference_mode():
            return run(pixel_values=pixels).logits

    def wait(result: Any) -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    start = time.perf_counter()
    logits = call().float().cpu().numpy()
    return Prepared(Side(call, wait), logits, time.perf_counter() - start)


def load_theirs(folder: Path, dtype: Any) -> Any:
    """transformers' model of a folder."""
    from convert.reference import import_reference

    _, transformers = import_reference()
    return transformers.VideoMAEForVideoClassification.from_pretrained(
        folder, attn_implementation="sdpa", dtype=dtype, local_files_only=True
    ).eval()


def compiled_theirs(model: Any, device: str) -> Any:
    """The model under `torch.compile`, for this one shape: on a GPU with max-autotune."""
    import torch

    # Otherwise a second batch size would be compiled for any batch size, which is slower.
    torch._dynamo.reset()
    mode = "max-autotune" if device == "cuda" else "default"
    return torch.compile(model, dynamic=False, mode=mode)


@contextlib.contextmanager
def no_compilation_cache() -> Iterator[None]:
    """Every program is compiled, whatever was compiled by processes before this one."""
    before = jax.config.jax_enable_compilation_cache  # pyrefly: ignore[missing-attribute]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


def matmul_peak(dtype: str) -> float:
    """Operations a second of one large square product, the better of two result dtypes."""
    size = 2048 if on_cpu() else 8192
    left, right = (
        (10 * jax.random.normal(jax.random.key(seed), (size, size))).astype(dtype)
        for seed in range(2)
    )
    whole = jax.numpy.issubdtype(dtype, jax.numpy.integer)
    best = 0.0
    for result in {"int32"} if whole else {dtype, "float32"}:
        with float32_is_float32(dtype):
            product = jax.jit(functools.partial(jax.numpy.matmul, preferred_element_type=result))
            compiled = product.lower(left, right).compile()
        side = Side(functools.partial(compiled, left, right), jax.block_until_ready)
        side.seconds(1)
        samples = in_turns({"product": side}, 5)["product"]
        best = max(best, 2 * size**3 / statistics.median(samples))
    return best


def on_cpu() -> bool:
    """Whether jax computes on the processor."""
    return jax.default_backend() == "cpu"


def accelerators() -> list[str]:
    """The name of the one device that is used, unless that is the processor."""
    return [] if on_cpu() else [jax.devices()[0].device_kind]


def threads() -> dict[str, int]:
    """How many threads each side computes with on the processor."""
    import torch

    # XLA has one a core, and no public name for their number.
    return {"XLA": usable_cores(), "torch": torch.get_num_threads()}


def torch_is_elsewhere() -> bool:
    """Whether torch can't compute on the kind of device that jax computes on."""
    import torch

    wanted = TORCH_DEVICES.get(jax.default_backend())
    return wanted is None or (wanted == "cuda" and not torch.cuda.is_available())


def free_memory() -> None:
    """Give back what torch keeps of a GPU's memory, so that the next case of ours has it."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def is_out_of_memory(error: Exception) -> bool:
    """Whether an exception of jax or torch says that the device's memory is too small."""
    text = f"{type(error).__name__}: {error}"
    return "RESOURCE_EXHAUSTED" in text or "OutOfMemory" in text or "out of memory" in text
