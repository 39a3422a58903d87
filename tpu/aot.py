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
        compile_seconds: measured here, of all programs that the account took.
        argument_bytes, output_bytes, temporary_bytes, program_bytes: in the memory of each chip.
        flops, traffic_bytes: of one clip, as the compiler counts them.
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
    traffic_bytes: float
    estimated_seconds: float | None
    chip: Chip

    @property
    def memory_bytes(self) -> int:
        """All that a chip holds."""
        held = self.argument_bytes + self.output_bytes
        return held + self.temporary_bytes + self.program_bytes

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
        """What the least time comes from, "arithmetic" or "memory"."""
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
    """

    topology: str
    config: Any
    batch: int
    dtype: str = "bfloat16"
    clips: str | None = None
    backend: str | None = None
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


# A program is its function, what every chip holds a copy of, and what is split between them.
PROGRAMS = {"forward": forward}


def account(request: Request) -> Account:
    """Compile the program and say what it needs.

    The compiler counts the body of a loop once. So the loop over layers is compiled with one and
    with two of them in its body: the difference is a layer.

    Raises:
        AotError: without libtpu, for a topology that doesn't exist, or a program that can't be
            compiled for it, because it doesn't fit, say.
    """
    chip, topology, chips = parse_topology(request.topology)
    prepare()
    start = time.perf_counter()
    once, twice = (_compiled(request, chip, topology, unroll) for unroll in (1, 2))
    seconds = time.perf_counter() - start
    memory = once.memory_analysis()
    layers = request.config.num_hidden_layers

    def of_a_clip(name: str) -> float:
        one, two = (program.cost_analysis().get(name, -1.0) for program in (once, twice))
        # The estimate is negative where the compiler has none.
        return (one + (layers - 1) * (two - one)) / request.batch if min(one, two) > 0 else -1.0

    estimate = of_a_clip("optimal_seconds")
    return Account(
        topology=topology,
        chips=chips,
        batch=request.batch,
        compile_seconds=seconds,
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        program_bytes=memory.generated_code_size_in_bytes,
        flops=of_a_clip("flops"),
        traffic_bytes=of_a_clip("bytes accessed"),
        estimated_seconds=estimate if estimate > 0 else None,
        chip=chip,
    )


def prepare() -> None:
    """Set the environment that JAX compiles for absent TPUs in; before JAX is imported.

    Raises:
        AotError: where libtpu is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise AotError('libtpu is not installed: pip install "videomae-jax[tpu]"')
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def _compiled(request: Request, chip: Chip, topology: str, unroll: int) -> Any:
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    mesh = tpu_mesh(chip, topology)
    function, whole, split = PROGRAMS[request.program](request, unroll)
    everywhere = NamedSharding(mesh, PartitionSpec())
    whole = jax.tree.map(lambda leaf: leaf.update(sharding=everywhere), whole)
    split = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            (leaf.shape[0] * mesh.size, *leaf.shape[1:]),
            leaf.dtype,
            sharding=NamedSharding(mesh, PartitionSpec("data")),
        ),
        split,
    )
    try:
        with quiet():
            return jax.jit(function).lower(whole, split).compile()
    except jax.errors.JaxRuntimeError as error:
        raise AotError(f"it can't be compiled for {topology}: {_reason(error)}") from error


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
        raise AotError(f"topology {topology} doesn't exist: {_reason(error)}") from error
    return jax.sharding.Mesh(np.array(described.devices), ("data",))


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


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
