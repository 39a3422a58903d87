"""Compile for a TPU without one, and account for what the program needs.

The TPU compiler itself (libtpu) compiles the very program that a TPU would run and says what it
holds in memory, computes and moves. Nothing runs, so nothing is timed: every figure is modelled.
"""

import contextlib
import dataclasses
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tpu.chips import Chip, parse_topology

# For JAX and libtpu, read when they are first imported, unless the user has said otherwise.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    # Nobody answers where there is no TPU.
    "TPU_SKIP_MDS_QUERY": "1",
    # Nothing is held that two processes could quarrel over.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}


class AotError(ValueError):
    """One line: what can't be compiled, and the mend."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Account:
    """What one compiled program needs, a chip or a clip at a time; all of it modelled.

    Attributes:
        batch: clips a chip.
        compile_seconds: measured here, of both programs that the account took, at the same time.
        argument_bytes, output_bytes, temporary_bytes, program_bytes: in the memory of each chip;
            outputs that take the place of arguments count once.
        flops, traffic_bytes: of one clip, as the compiler counts them; in hand-written kernels, as
            their authors estimate.
        counted_flops: of one clip, the products alone, counted from the config.
        estimated_seconds: of one clip, the compiler's own estimate, or None where it has none.
    """

    topology: str
    chips: int
    batch: int
    compile_seconds: float
    argument_bytes: int
    output_bytes: int
    temporary_bytes: int
    program_bytes: int
    flops: float
    counted_flops: int
    traffic_bytes: float
    estimated_seconds: float | None
    chip: Chip

    @property
    def memory_bytes(self) -> int:
        """All that a chip holds."""
        held = self.argument_bytes + self.output_bytes
        return held + self.temporary_bytes + self.program_bytes

    @property
    def fits(self) -> bool:
        """Whether a chip can hold it."""
        return self.memory_bytes <= self.chip.memory_bytes

    @property
    def arithmetic_seconds(self) -> float:
        """Of one clip at the chip's peak."""
        return self.flops / self.chip.flops_per_second

    @property
    def traffic_seconds(self) -> float:
        """Of one clip at the memory's peak."""
        return self.traffic_bytes / self.chip.bytes_per_second

    @property
    def roofline_seconds(self) -> float:
        """The least time of one clip on one chip."""
        return max(self.arithmetic_seconds, self.traffic_seconds)

    @property
    def bound(self) -> str:
        """What the least time comes from, "arithmetic" or "memory"; or "doesn't fit"."""
        if not self.fits:
            return "doesn't fit"
        return "memory" if self.traffic_seconds > self.arithmetic_seconds else "arithmetic"

    def to_dict(self) -> dict[str, Any]:
        """All figures, ready for JSON."""
        names = ("memory_bytes", "arithmetic_seconds", "traffic_seconds", "roofline_seconds")
        derived = {name: getattr(self, name) for name in names}
        return {"modelled": True, **dataclasses.asdict(self), **derived, "bound": self.bound}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What to compile: a config at `batch` clips a chip, in a dtype, for a topology.

    `clips` is the dtype of the clips that come in; uint8 ones are normalised inside the program.
    `sharding` and `model_axis` say how parameters lie on the chips, see `videomae_jax.sharding`.
    """

    topology: str
    config: Any
    batch: int
    dtype: str = "bfloat16"
    clips: str | None = None
    backend: str | None = None
    sharding: str = "replicated"
    model_axis: int | None = None
    program: str = "forward"


def forward(request: Request, unroll: int) -> tuple[Callable, Any, Any]:
    """The classifier's forward pass: (function of both, parameters, clips of one chip)."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from videomae_jax.inference import apply_to_uint8
    from videomae_jax.model import VideoClassifier, abstract_params
    from videomae_jax.processing import Preprocess

    model = VideoClassifier(
        request.config, dtype=request.dtype, attention_backend=request.backend, unroll=unroll
    )
    clips = jnp.dtype(request.clips or request.dtype)
    scale, shift = Preprocess.default(request.config.image_size).normalization()

    def run(params: Any, clips: jax.Array) -> Any:
        variables = {"params": params}
        if clips.dtype == np.uint8:
            return apply_to_uint8(model, variables, clips, scale, shift)
        return model.apply(variables, clips)

    shape = (request.batch, *request.config.clip_shape)
    return run, abstract_params(model, request.dtype), jax.ShapeDtypeStruct(shape, clips)


def count_forward(config: Any) -> int:
    """FLOP of the products of one clip in `forward`."""
    from videomae_jax.flops import flops_per_clip

    return flops_per_clip(config)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """`build(request, unroll)` gives a function, what every chip holds a copy of, and its clips.

    `count` is the FLOP of the products for one clip, from a config.
    """

    build: Callable[[Request, int], tuple[Callable, Any, Any]]
    count: Callable[[Any], int]


PROGRAMS = {"forward": Program(build=forward, count=count_forward)}


def account(request: Request) -> Account:
    """Compile the program and say what it needs.

    The compiler counts the body of a loop once. So the loop over layers is compiled with one and
    with two of them in its body: the difference is a layer.

    Raises:
        AotError: without libtpu, for a topology that doesn't exist, or a program that can't be
            compiled for it, because it doesn't fit, say.
    """
    chip, topology, _ = parse_topology(request.topology)
    prepare()
    mesh = tpu_mesh(chip, topology)
    start = time.perf_counter()
    with quiet(), ThreadPoolExecutor() as threads:
        once, twice = threads.map(lambda unroll: _compiled(request, mesh, unroll), (1, 2))
    seconds = time.perf_counter() - start
    layers = request.config.num_hidden_layers

    def of_a_clip(name: str) -> float | None:
        one, two = (program.cost_analysis().get(name, -1.0) for program in (once, twice))
        if min(one, two) <= 0:
            return None
        return whole_count(one, two, layers) / request.batch

    counted = PROGRAMS[request.program].count(request.config)
    return account_of(once, request, of_a_clip, counted_flops=counted, compile_seconds=seconds)


def account_of(
    program: Any,
    request: Request,
    of_a_clip: Callable[[str], float | None],
    *,
    counted_flops: int,
    compile_seconds: float,
) -> Account:
    """Of a compiled program, whose memory counts; `of_a_clip` gives costs by the compiler's names.

    Raises:
        AotError: where the compiler doesn't say what a program costs.
    """
    chip, topology, chips = parse_topology(request.topology)
    flops, traffic = of_a_clip("flops"), of_a_clip("bytes accessed")
    if flops is None or traffic is None:
        raise AotError(f"the compiler of {topology} does not say what the program costs")
    memory = program.memory_analysis()
    return Account(
        topology=topology,
        chips=chips,
        batch=request.batch,
        compile_seconds=compile_seconds,
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        program_bytes=memory.generated_code_size_in_bytes,
        flops=flops,
        counted_flops=counted_flops,
        traffic_bytes=traffic,
        # Negative where the compiler has none.
        estimated_seconds=of_a_clip("optimal_seconds"),
        chip=chip,
    )


def whole_count(one: float, two: float, layers: int) -> float:
    """What all layers count, from programs with one and with two layers in the loop's body.

    An odd number of them leaves one behind the loop of two, which is counted, too.
    """
    if layers == 1:
        return one
    more = 2 if layers % 2 else 1
    return one + (layers - 1) * (two - one) / more


def set_environment() -> None:
    """Say how JAX and libtpu compile for absent TPUs; without effect once JAX is imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def prepare() -> None:
    """Set the environment and make sure of the compiler.

    Raises:
        AotError: where libtpu is not installed.
    """
    set_environment()
    if importlib.util.find_spec("libtpu") is None:
        raise AotError('libtpu is not installed: pip install "videomae-jax[tpu]"')


def _compiled(request: Request, mesh: Any, unroll: int) -> Any:
    import jax

    from videomae_jax.sharding import clip_sharding, mesh_of, param_shardings

    function, whole, split = PROGRAMS[request.program].build(request, unroll)
    sharding = request.sharding
    mesh = mesh_of(mesh.devices.flatten(), sharding=sharding, model_axis=request.model_axis)
    places = param_shardings(whole, mesh, sharding=sharding)
    whole = jax.tree.map(lambda leaf, place: leaf.update(sharding=place), whole, places)
    split = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            (leaf.shape[0] * mesh.size, *leaf.shape[1:]),
            leaf.dtype,
            sharding=clip_sharding(mesh, sharding=sharding),
        ),
        split,
    )
    try:
        return jax.jit(function).lower(whole, split).compile()
    except jax.errors.JaxRuntimeError as error:
        raise AotError(refusal(str(error), request)) from error


def refusal(message: str, request: Request) -> str:
    """What the compiler says against a program, in one line that ends with what may help."""
    reason = first_line(message)
    if "RESOURCE_EXHAUSTED" not in reason:
        return f"it can't be compiled for {request.topology}: {reason}"
    reason = reason.partition("RESOURCE_EXHAUSTED:")[2].strip().rstrip(".")
    mend = f"try a --batch below {request.batch}" if request.batch > 1 else "try another --dtype"
    if "vmem" in reason.lower():
        mend = "try --backend xla"
    return f"it doesn't fit on a chip of {request.topology}: {reason}; {mend}"


def tpu_mesh(chip: Chip, topology: str) -> Any:
    """All chips of a topology as a mesh with the one axis "data".

    Raises:
        AotError: for one that doesn't exist.
    """
    import jax
    import numpy as np
    from jax.experimental import topologies

    try:
        with quiet():
            described = topologies.get_topology_desc(
                platform="tpu",
                topology_name=topology,
                chips_per_host_bounds=(1, 1, 1),
                **chip.options,
            )
    except jax.errors.JaxRuntimeError as error:
        raise AotError(f"topology {topology} doesn't exist: {first_line(str(error))}") from error
    return jax.sharding.Mesh(np.array(described.devices), ("data",))


def first_line(message: str) -> str:
    """The first line that says anything, cut to 300 letters."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[0][:300] if lines else "no reason is given"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what libtpu writes to stderr, by its number, off the terminal: that there is no TPU."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
