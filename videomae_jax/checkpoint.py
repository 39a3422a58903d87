"""The converted directory: all that inference needs, written whole or not at all.

DIR/params/          the parameter tree, Orbax v1
DIR/processing.json  `Preprocess`
DIR/labels.json      a list of class names
DIR/conversion.json  where it came from, and the proof
DIR/config.json      `VideoMAEConfig` and the architecture; written last: where it stands, the
                     directory is complete
"""

import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from videomae_jax.array_files import DTYPES, NotPlain, array_names, read_array
from videomae_jax.config import VideoMAEConfig
from videomae_jax.labels import Labels
from videomae_jax.processing import Preprocess
from videomae_jax.writing import CheckpointError, new_directory, write_json

logger = logging.getLogger(__name__)

FORMAT = "videomae_jax/1"

# Arrays that are read at once.
READERS = 4

# A nested dict of arrays, as Flax makes it.
Params = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """Everything in a converted directory but the weights.

    `architecture` is the name of a class in `model.py`, `dtype` that of every parameter, one of
    `DTYPES`; `labels` is None where no classes are.
    """

    architecture: str
    config: VideoMAEConfig
    dtype: str = "float32"
    preprocess: Preprocess
    labels: Labels | None
    conversion: Mapping[str, Any]


def save(
    directory: str | os.PathLike,
    params: Params,
    description: Description,
    *,
    prove: Callable[[Path], Mapping[str, Any]] | None = None,
) -> None:
    """Write a converted directory: into a temporary sibling, renamed when it is whole.

    `prove`, when given, gets the folder `load_params` can read the written weights from, with
    processing.json and labels.json in it, and returns entries to add to the conversion report; if
    it raises, nothing stays behind.

    Raises:
        CheckpointError: if `directory` exists, which is then left untouched.
    """
    with new_directory(directory) as folder:
        save_params(folder, params)
        write_json(folder / "processing.json", description.preprocess.to_dict())
        labels = description.labels
        write_json(folder / "labels.json", labels.to_list() if labels is not None else None)
        conversion = dict(description.conversion)
        if prove is not None:
            conversion |= prove(folder)
        write_json(folder / "conversion.json", conversion)
        head = {
            "format": FORMAT,
            "architecture": description.architecture,
            "dtype": description.dtype,
        }
        write_json(folder / "config.json", head | description.config.to_dict())


def is_converted(directory: str | os.PathLike) -> bool:
    """Whether the directory's config.json says that it is a converted one, of any version."""
    try:
        fields = json.loads((Path(directory) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(fields, dict) and str(fields.get("format", "")).startswith("videomae_jax/")


def load_description(directory: str | os.PathLike) -> Description:
    """Read everything but the weights.

    Raises:
        CheckpointError: if the directory is missing, incomplete, of another format, or holds a
            value that can't be.
    """
    directory = Path(directory)
    fields = _read_json(_complete(directory) / "config.json")
    found = fields.pop("format", None) if isinstance(fields, dict) else None
    if found != FORMAT:
        raise CheckpointError(
            f"{directory}: config.json has format {found!r}, wanted {FORMAT!r}; "
            f"convert it: python -m convert {directory} OUT"
        )
    try:
        labels = _read_json(directory / "labels.json")
        description = Description(
            architecture=fields.pop("architecture", ""),
            dtype=_dtype(fields.pop("dtype", "float32")),
            config=VideoMAEConfig.from_dict(fields),
            preprocess=Preprocess.from_dict(_read_json(directory / "processing.json")),
            labels=None if labels is None else Labels.from_list(labels),
            conversion=_read_json(directory / "conversion.json"),
        )
        if labels is not None and len(labels) != description.config.num_labels:
            raise ValueError(
                f"labels.json names {len(labels)} classes, "
                f"config.json has num_labels {description.config.num_labels}"
            )
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{directory}: {error}; convert the source again") from error
    return description


def check_sizes(directory: str | os.PathLike, conversion: Mapping[str, Any]) -> None:
    """Compare files with what the conversion report says was written: there, and as long.

    Nothing is read, so that it costs nothing, and a copy that was cut short is one line here,
    where Orbax would raise in several threads.

    Raises:
        CheckpointError: naming the first file that differs.
    """
    written = conversion.get("written")
    for entry in written if isinstance(written, list) else ():
        path = Path(directory) / str(entry.get("name"))
        try:
            size = path.stat().st_size
        except OSError as error:
            raise CheckpointError(
                f"{path}: can't be read ({error.strerror}); convert the source again"
            ) from error
        if size != entry.get("bytes"):
            raise CheckpointError(
                f"{path}: has {size:,} bytes, {entry.get('bytes'):,} were written; copy the "
                f"directory or convert the source again"
            )


def save_params(directory: str | os.PathLike, params: Params) -> None:
    """Write the tree, of NumPy or JAX arrays, to `directory`/params, with no copy in memory.

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
    return {
        _name(path, "/"): str([*leaf.shape])
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _name(path: tuple, separator: str) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=separator)


def _reason(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    # What follows is the name of an object, not its text.
    return line.partition(". See full TensorStore details")[0]


def _weights(directory: str | os.PathLike) -> Path:
    # Orbax takes absolute paths only.
    return (Path(directory) / "params").absolute()


def _complete(directory: Path) -> Path:
    hint = f"make one: python -m convert SOURCE {directory}"
    if not directory.is_dir():
        what = "is a file, not a converted directory" if directory.exists() else "doesn't exist"
        raise CheckpointError(f"{directory} {what}; {hint}")
    if not (directory / "config.json").is_file():
        raise CheckpointError(f"{directory} is not a converted directory (no config.json); {hint}")
    return directory


def _dtype(name: Any) -> str:
    if name not in tuple(DTYPES):
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {name!r}")
    return name


def _read_json(path: Path) -> Any:
    again = "convert the source again"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror}); {again}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}); {again}") from error
