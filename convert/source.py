"""SOURCE -> its weight files, opened, and what the JSON files beside them say."""

import dataclasses
import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.errors import ConversionError
from convert.json_file import read_json
from convert.weights import Choice, Tensor, read_weights

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    # DeepSpeed's, in the folder of a step.
    "mp_rank_00_model_states.pt",
)
# What file systems allow.
MOST_NAME_BYTES = 255
PREPROCESSOR_FILES = ("preprocessor_config.json", "video_preprocessor_config.json")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """What a user handed over: the weights, and the JSON files beside them, read when asked for.

    `entry` is where in a torch file the weights lay, `ignored_entries` what lay beside them, and
    `averaged` the one of those with a running average of the weights, if it was not asked for.
    """

    path: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, Tensor]
    entry: str | None
    ignored_entries: tuple[str, ...]
    averaged: str | None = None

    @property
    def config_file(self) -> Path:
        """Where a Hugging Face folder has its config."""
        return self.files[0].parent / "config.json"

    @property
    def preprocessor_file(self) -> Path | None:
        """The description of the preprocessing, if there is one."""
        files = (self.files[0].parent / name for name in PREPROCESSOR_FILES)
        return next((file for file in files if file.is_file()), None)

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """The contents of `config_file`.

        Raises:
            ConversionError: if it is missing or holds no JSON object.
        """
        if not self.config_file.is_file():
            raise ConversionError(
                f"{self.path}: a Hugging Face layout needs the config.json that belongs to it, "
                f"which should be {self.config_file}"
            )
        return read_json(self.config_file)


def open_source(path: str | os.PathLike, *, weights: Choice = "model") -> Source:
    """Open a Hugging Face folder, or a weight file (`.safetensors`, `.pth`, `.pt`, `.bin`).

    `weights` says which of a torch file's: the trained ones, or their running average.

    Raises:
        ConversionError: for a path or file that can't be read, naming it.
    """
    path = Path(path)
    if not (path.is_dir() or path.is_file()):
        what = "is neither folder nor file" if path.exists() else "doesn't exist"
        raise ConversionError(f"{path} {what}; give a Hugging Face folder or a .pth file")
    found = _find_weights(path) if path.is_dir() else path
    files = _shards(found) if found.suffix == ".json" else (found,)
    opened = [read_weights(file, choice=weights) for file in files]
    tensors: dict[str, Tensor] = {}
    for file, found_weights in zip(files, opened, strict=True):
        repeated = sorted(set(found_weights.tensors) & set(tensors))
        if repeated:
            raise ConversionError(f"{file}: holds {repeated[0]}, as another shard does")
        tensors |= found_weights.tensors
    if found.suffix == ".json":
        _check_index(found, tensors)
    return Source(
        path=path,
        files=files,
        tensors=tensors,
        entry=opened[0].entry,
        ignored_entries=tuple(sorted({name for each in opened for name in each.ignored_entries})),
        averaged=opened[0].averaged,
    )


def _find_weights(folder: Path) -> Path:
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    if (folder / "conversion.json").is_file():
        raise ConversionError(f"{folder}: is converted already; use it as it is")
    others = sorted(p.name for p in folder.iterdir() if p.suffix in (".pth", ".pt", ".safetensors"))
    hint = f"; give the file itself: {folder / others[0]}" if others else ""
    raise ConversionError(f"{folder}: holds none of {', '.join(WEIGHT_FILES)}{hint}")


def _shards(index: Path) -> tuple[Path, ...]:
    weight_map = read_json(index).get("weight_map")
    if weight_map is None and not index.name.endswith(".index.json"):
        what = "a config" if index.name == "config.json" else "a JSON file"
        raise ConversionError(f"{index}: is {what}, no weights; give its folder: {index.parent}")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ConversionError(f"{index}: has no weight_map")
    for name in weight_map.values():
        plain = isinstance(name, str) and name.isprintable()
        if not plain or len(name.encode()) > MOST_NAME_BYTES:
            raise ConversionError(f"{index}: names {str(name)[:80]!r}, which is no name of a file")
    names = sorted(set(weight_map.values()))
    for name in names:
        # Names only: where a link of the hub's cache leads is not asked.
        if Path(name).name != name:
            raise ConversionError(f"{index}: names {name!r}, which is outside its folder")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ConversionError(f"{index}: its shard {missing[0]} is missing; download it again")
    return tuple(index.parent / name for name in names)


def _check_index(index: Path, tensors: Mapping[str, Tensor]) -> None:
    listed = set(read_json(index)["weight_map"])
    problems = [f"{index}: lists {name}, which no shard holds" for name in listed - set(tensors)]
    problems += [
        f"{index}: doesn't list {name}, which a shard holds" for name in set(tensors) - listed
    ]
    if problems:
        raise ConversionError(*sorted(problems))
