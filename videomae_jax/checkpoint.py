"""The converted directory: all that inference needs, written whole or not at all.

DIR/params/          the parameter tree, Orbax v1
DIR/processing.json  `Preprocess`
DIR/labels.json      a list of class names
DIR/conversion.json  where it came from, and the proof
DIR/config.json      `VideoMAEConfig` and the architecture; written last: where it stands, the
                     directory is complete
"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from videomae_jax.array_files import DTYPES
from videomae_jax.config import VideoMAEConfig
from videomae_jax.labels import Labels
from videomae_jax.processing import Preprocess
from videomae_jax.weights import Params, save_params
from videomae_jax.writing import CheckpointError, new_directory, write_json

FORMAT = "videomae_jax/1"


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
    params: Params | Path,
    description: Description,
    *,
    prove: Callable[[Path], Mapping[str, Any]] | None = None,
) -> None:
    """Write a converted directory: into a temporary sibling, renamed when it is whole.

    `params` may also be a folder on the same disk that `save_params` has written them to, which are
    then moved: several processes can only write them together.

    `prove`, when given, gets the folder `load_params` can read the written weights from, with
    processing.json and labels.json in it, and returns entries to add to the conversion report; if
    it raises, nothing stays behind.

    Raises:
        CheckpointError: if `directory` exists, which is then left untouched.
    """
    with new_directory(directory) as folder:
        if isinstance(params, Path):
            (params / "params").rename(folder / "params")
        else:
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


def _complete(directory: Path) -> Path:
    hint = f"make one: python -m convert SOURCE {directory}"
    if not directory.is_dir():
        what = "is a file, not a converted directory" if directory.exists() else "doesn't exist"
        raise CheckpointError(f"{directory} {what}; {hint}")
    if not (directory / "config.json").is_file():
        if is_converted(directory / "final"):
            hint = f"it is a training run's, whose model is {directory / 'final'}"
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
