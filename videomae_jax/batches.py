"""Many videos through one compiled program: batches of one shape, over the devices.

    threads decode -> this thread fills batches -> device -> outputs of each video, all its views

Two batches are on the device while the next one is filled; the last is filled up with zeros whose
outputs nobody gets.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jaxtyping import UInt8

from videomae_jax.background import several_ahead, usable_cores
from videomae_jax.inference import apply_to_uint8
from videomae_jax.model import VideoModel
from videomae_jax.processing import Preprocess
from videomae_jax.sharding import clip_sharding, mesh_of, param_shardings
from videomae_jax.views import Views, read_views
from videomae_jax.weights import Params

BATCH = {"cpu": 4}
"""Clips a device, by its platform."""
ACCELERATOR_BATCH = 32


class Program:
    """A compiled model; `batch` clips at a time, of all devices together.

    Args:
        model, params, preprocess: as a `Checkpoint` has them.
        batch: clips a device; None follows the kind of device.
        mesh: of the devices that share each batch, as the parameters are placed on it; this
            process's own by default.
        sharding: how that is, one of `sharding.SHARDINGS`.
        finish: what is done to the model's outputs, in the program.
    """

    def __init__(
        self,
        model: VideoModel,
        params: Params,
        preprocess: Preprocess,
        *,
        batch: int | None = None,
        mesh: Mesh | None = None,
        sharding: str = "replicated",
        finish: Callable[[Array], Array] | None = None,
    ):
        mesh = mesh_of(sharding=sharding) if mesh is None else mesh
        platform = mesh.devices.flat[0].platform
        self._of_clips = clip_sharding(mesh, sharding=sharding)
        self.batch = (batch or BATCH.get(platform, ACCELERATOR_BATCH)) * mesh.shape["data"]
        if sharding == "fsdp":
            self.batch *= mesh.shape["model"]
        self.clip_shape = model.config.clip_shape
        self._params = jax.device_put(params, param_shardings(params, mesh, sharding=sharding))
        if model.attention_backend is None and platform == "cpu":
            # One that follows the device is traced for all kinds of them.
            model = model.clone(attention_backend="blocked")
        scale, shift = preprocess.normalization()

        def run(params: Any, clips: Array) -> Array:
            outputs = apply_to_uint8(model, {"params": params}, clips, scale, shift)
            return outputs if finish is None else finish(outputs)

        clips = jax.ShapeDtypeStruct(
            (self.batch, *self.clip_shape), np.uint8, sharding=self._of_clips
        )
        self._run = jax.jit(run).lower(self._params, clips).compile()

    def start(self, clips: UInt8[np.ndarray, "B T h w C"]) -> Array:
        """Begin with [batch, T, h, w, C], resized and not normalised; returns at once.

        `clips` must not change before the outputs are there: a CPU reads them where they are.
        """
        return self._run(self._params, jax.device_put(clips, self._of_clips))


def outputs_of(
    program: Program,
    videos: Iterable[tuple[Any, Future]],
    *,
    on_bad: Callable[[Any, ValueError], None],
) -> Iterator[tuple[Any, np.ndarray]]:
    """(item, outputs [V, ...]) of each video, in order, some after what was read last.

    Args:
        videos: items, each with a finished call that gave its clips, uint8 [V, T, h, w, C], as
            `background.several_ahead` makes them of `views.read_views`.
        on_bad: called with the item and the error of a call that raised ValueError (VideoError is
            one); the video has no outputs.
    """
    return _joined(_rows(program, _clips_of(videos, on_bad)))


def run_videos(
    model: VideoModel,
    params: Params,
    preprocess: Preprocess,
    paths: Sequence[str],
    *,
    views: Views,
    on_bad: Callable[[int, ValueError], None],
    batch: int | None = None,
    workers: int | None = None,
    change: Callable[[int, np.ndarray], np.ndarray] | None = None,
    finish: Callable[[Array], Array] | None = None,
    progress: Callable[[Iterable[Any]], Iterator[Any]] = iter,
) -> Iterator[tuple[int, np.ndarray]]:
    """(number in `paths`, outputs [V, ...]) of each video that can be read, in order.

    Decoding begins at once, and goes on while the model is compiled.

    Args:
        on_bad, batch, finish: as `outputs_of` and `Program` have them.
        workers: videos decoded at a time; one a core by default.
        change: what becomes of the clips of a video, [V, T, h, w, C]; gets its number, too.
        progress: what the videos go through as they are read, a bar; there are len(paths).

    Raises:
        ValueError: for several crops of a preprocessing that has no square one.
    """
    preprocess.check_crops(views.crops)

    def read(number: int) -> np.ndarray:
        clips = np.empty((views.count, *model.config.clip_shape), np.uint8)
        read_views(
            paths[number], model.config.num_frames, preprocess=preprocess, views=views, out=clips
        )
        return clips if change is None else change(number, clips)

    # A core that waits for the oldest video has another to go on with.
    count = usable_cores() + 1 if workers is None else workers
    videos = several_ahead(read, range(len(paths)), count=count)
    program = Program(model, params, preprocess, batch=batch, finish=finish)
    return outputs_of(program, progress(videos), on_bad=on_bad)


def _clips_of(
    videos: Iterable[tuple[Any, Future]], on_bad: Callable[[Any, ValueError], None]
) -> Iterator[tuple[Any, int, np.ndarray]]:
    """(item, how many views it has, one of them)."""
    for item, call in videos:
        try:
            clips = call.result()
        except ValueError as error:
            on_bad(item, error)
            continue
        for clip in clips:
            yield item, len(clips), clip


def _rows(
    program: Program, clips: Iterable[tuple[Any, int, np.ndarray]]
) -> Iterator[tuple[Any, int, np.ndarray]]:
    """(item, how many views it has, the output of one of them), in the order of the clips."""
    # One is on the device while the other is filled: memory that is used again costs less.
    memory = [np.zeros((program.batch, *program.clip_shape), np.uint8) for _ in range(2)]
    whose: list[tuple[Any, int]] = []
    before: tuple[Array | None, list[tuple[Any, int]]] = (None, [])
    for item, views, clip in clips:
        memory[0][len(whose)] = clip
        whose.append((item, views))
        if len(whose) == program.batch:
            started = (program.start(memory[0]), whose)
            yield from _outputs(*before)
            before, whose = started, []
            memory.reverse()
    if whose:
        memory[0][len(whose) :] = 0
        started = (program.start(memory[0]), whose)
        yield from _outputs(*before)
        before = started
    yield from _outputs(*before)


def _outputs(
    array: Array | None, whose: list[tuple[Any, int]]
) -> Iterator[tuple[Any, int, np.ndarray]]:
    if array is not None:
        for (item, views), output in zip(whose, np.asarray(array), strict=False):
            yield item, views, output


def _joined(rows: Iterable[tuple[Any, int, np.ndarray]]) -> Iterator[tuple[Any, np.ndarray]]:
    """The outputs of a video together, [V, ...]."""
    outputs: list[np.ndarray] = []
    for item, views, output in rows:
        outputs.append(output)
        if len(outputs) == views:
            yield item, np.stack(outputs)
            outputs = []
