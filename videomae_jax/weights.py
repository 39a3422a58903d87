"""The weights in a converted directory: a tree of arrays, written by Orbax."""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videomae_jax.array_files import NotPlain, array_names, read_array
from videomae_jax.writing import CheckpointError

if TYPE_CHECKING:
    pass

logger = logging.getLogger(__name__)

# Arrays that are read at once.
READERS = 4

# A nested dict of arrays, as Flax makes it.
Params = Any


def save_params(directory: str | os.PathLike, params: Params) -> None:
    """Write the tree, of NumPy or JAX arrays, to `directory`/params, with no copy in memory.

    Where jax.distributed is on, all processes have to call it, with the same arguments.

    Raises:
        CheckpointError: if it can't be written, because the disk is full, say.
    """
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    # Nothing changes the arrays meanwhile, and float weights hardly compress: each would cost the
    # size of the model in memory.
    context.memory.deepcopy_host_arrays = False
    context.array.saving.use_compression = False
    # One file an array, written straight from its memory, in a third of the time of one database.
    context.array.saving.use_ocdbt = False
    try:
        with context, _without_talk():
            ocp.save(str(_weights(directory)), params)
    # Orbax and TensorStore raise whatever their layers raise.
    except Exception as error:
        raise CheckpointError(
            f"{directory}: the weights can't be written ({_reason(error)}); make room or name "
            f"another place"
        ) from error


@contextlib.contextmanager
def _without_talk() -> Iterator[None]:
    """Orbax warns that there is no database of arrays, where none was asked for.

    And, in many lines, of what is one line here.
    """

    def is_other(record: logging.LogRecord) -> bool:
        talk = (
            "Skipping merge of OCDBT",
            "TensorStore data files not found",
            "Failed to get metadata",
        )
        return not any(text in record.getMessage() for text in talk)

    logger = logging.getLogger("absl")
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def load_params(directory: str | os.PathLike, like: Any) -> Params:
    """Read the tree at `directory`/params into the likeness of `like`.

    `like` is a tree of `jax.ShapeDtypeStruct`: its shapes must be the stored ones, arrays are cast
    to its dtypes, and each is placed by its leaf's sharding, or on the default device where that is
    None.

    Raises:
        CheckpointError: if the weights are missing, damaged or of another shape.
    """
    import jax

    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    placed = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or here),
        like,
    )
    try:
        return _load_plain(_weights(directory) / "state", placed)
    except NotPlain as reason:
        logger.info("%s: read by Orbax (%s)", directory, reason)
        return _load_orbax(directory, placed)


def _load_plain(folder: Path, placed: Params) -> Params:
    """Read the arrays as `save_params` writes them; NotPlain if they are anything else."""
    import jax

    leaves, tree = jax.tree_util.tree_flatten_with_path(placed)
    named = {_name(path, "."): leaf for path, leaf in leaves}
    if array_names(folder) != named.keys():
        raise NotPlain("other arrays are stored")
    if not all(leaf.sharding.is_fully_addressable for leaf in named.values()):
        raise NotPlain("each process reads its part")

    def load(name: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        array = read_array(folder / name, leaf.shape).astype(leaf.dtype, copy=False)
        return jax.device_put(array, leaf.sharding)

    # Reading lets go of the interpreter lock.
    with ThreadPoolExecutor(READERS) as pool:
        return jax.tree.unflatten(tree, list(pool.map(load, named, named.values())))


def _load_orbax(directory: str | os.PathLike, placed: Params) -> Params:
    from orbax.checkpoint import v1 as ocp

    try:
        with _without_talk():
            _compare(ocp.metadata(str(_weights(directory))).metadata, placed)
            return ocp.load(str(_weights(directory)), placed)
    except Exception as error:
        raise CheckpointError(
            f"{Path(directory) / 'params'}: the weights can't be read ({_reason(error)}); "
            f"convert the source again"
        ) from error


def _compare(stored: Any, wanted: Params) -> None:
    """Raise ValueError at the first array that isn't stored as it is wanted.

    Before anything is read: Orbax itself would raise in the middle of reading all of them, and
    leave the others' tracebacks on the terminal.
    """
    if not isinstance(stored, Mapping):
        raise ValueError("an array is missing or damaged")
    there, needed = _shapes(stored), _shapes(wanted)
    for name in sorted(there.keys() | needed.keys()):
        found, other = there.get(name, "nothing"), needed.get(name, "nothing")
        if found != other:
            raise ValueError(f"{name}: {found} is stored where {other} is wanted")


def _shapes(tree: Any) -> dict[str, str]:
    import jax

    return {
        _name(path, "/"): str([*leaf.shape])
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _name(path: tuple, separator: str) -> str:
    import jax

    return jax.tree_util.keystr(path, simple=True, separator=separator)


def _reason(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    # What follows is the name of an object, not its text.
    return line.partition(". See full TensorStore details")[0]


def _weights(directory: str | os.PathLike) -> Path:
    # Orbax takes absolute paths only.
    return (Path(directory) / "params").absolute()
