"""SOURCE -> {name: tensor read on demand}, and what the JSON files beside it say.

Safetensors are read without torch. Pickles (`.pth`, `.bin`) are read by torch with
`weights_only=True` and never otherwise: a file that needs more is refused.
"""

import argparse
import dataclasses
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convert.errors import ConversionError

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
PREPROCESSOR_FILES = ("preprocessor_config.json", "video_preprocessor_config.json")

# Where training scripts keep the weights: torch's trainers, then DeepSpeed's.
WEIGHT_ENTRIES = ("model", "module")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor in a file: shape and dtype at once, values when read."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """What a user handed over. `config` and `preprocessor` are None where there is no such file."""

    path: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, Tensor]
    config: dict[str, Any] | None
    preprocessor: dict[str, Any] | None
    entry: str | None
    ignored_entries: tuple[str, ...]


def open_source(path: str | os.PathLike) -> Source:
    """Open a Hugging Face folder, or a weight file (`.safetensors`, `.pth`, `.pt`, `.bin`).

    The JSON files of a Hugging Face folder are read for a weight file that lies in one, too.

    Raises:
        ConversionError: for a path or file that can't be read, naming it.
    """
    path = Path(path)
    if not path.exists():
        raise ConversionError(f"{path} doesn't exist; give a Hugging Face folder or a .pth file")
    weights = _find_weights(path) if path.is_dir() else path
    files = _shards(weights) if weights.suffix == ".json" else (weights,)
    tensors: dict[str, Tensor] = {}
    entry, ignored = None, ()
    for file in files:
        if _is_safetensors(file):
            found = read_safetensors(file)
        else:
            found, entry, ignored = read_pickle(file)
        repeated = sorted(set(found) & set(tensors))
        if repeated:
            raise ConversionError(f"{file}: holds {repeated[0]}, as another shard does")
        tensors |= found
    if weights.suffix == ".json":
        _check_index(weights, tensors)
    folder = weights.parent
    preprocessors = [folder / name for name in PREPROCESSOR_FILES if (folder / name).is_file()]
    config = folder / "config.json"
    return Source(
        path=path,
        files=files,
        tensors=tensors,
        config=read_json(config) if config.is_file() else None,
        preprocessor=read_json(preprocessors[0]) if preprocessors else None,
        entry=entry,
        ignored_entries=ignored,
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ConversionError: if it can't be read or is something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConversionError(f"{path}: can't be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{path}: must hold a JSON object")
    return content


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Each read opens it anew, so no mapped page stays behind.

    Raises:
        ConversionError: if the header is damaged or does not fit the file.
    """
    with _opened_safetensors(path) as file:
        names = list(file.keys())
        slices = {name: file.get_slice(name) for name in names}
        shapes = {name: tuple(slices[name].get_shape()) for name in names}
        dtypes = {name: slices[name].get_dtype() for name in names}

    def reader(name: str) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            with _opened_safetensors(path) as file:
                return file.get_tensor(name)

        return read

    return {name: Tensor(shapes[name], dtypes[name], reader(name)) for name in names}


def read_pickle(path: Path) -> tuple[dict[str, Tensor], str | None, tuple[str, ...]]:
    """The tensors of a torch file, the entry they lay under, and the names of the entries beside.

    Raises:
        ConversionError: if torch is missing, the file is damaged, would run code, or holds no
            weights.
    """
    try:
        import torch
    except ImportError as error:
        raise ConversionError(
            f"{path}: reading it needs torch; pip install 'videomae-jax[torch]', or convert it "
            f"to safetensors elsewhere"
        ) from error
    if path.stat().st_size == 0:
        raise ConversionError(f"{path}: empty; download it again")
    try:
        # Files of training runs keep their command line, a plain Namespace, beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except pickle.UnpicklingError as error:
        raise ConversionError(_unpickling_problem(path, str(error))) from error
    # A damaged file can fail anywhere in torch's reader, or in the unpickler it drives.
    except Exception as error:
        raise ConversionError(
            f"{path}: not a readable torch file ({_first_line(error)}); download it again"
        ) from error
    return _weights_within(path, content)


def _find_weights(folder: Path) -> Path:
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    others = sorted(p.name for p in folder.iterdir() if p.suffix in (".pth", ".pt", ".safetensors"))
    hint = f"; give the file itself: {folder / others[0]}" if others else ""
    raise ConversionError(f"{folder}: holds none of {', '.join(WEIGHT_FILES)}{hint}")


def _shards(index: Path) -> tuple[Path, ...]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ConversionError(f"{index}: has no weight_map")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name:
            raise ConversionError(f"{index}: names {name!r}, which is outside its folder")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ConversionError(f"{index}: its shard {missing[0]} is missing; download it again")
    return tuple(index.parent / name for name in names)


def _check_index(index: Path, tensors: Mapping[str, Tensor]) -> None:
    listed = set(read_json(index)["weight_map"])
    problems = [f"{index}: lists {name}, which no shard holds" for name in listed - set(tensors)]
    problems += [f"{index}: doesn't list {name}, which a shard holds" for name in set(tensors) - listed]
    if problems:
        raise ConversionError(*sorted(problems))


def _is_safetensors(path: Path) -> bool:
    return path.suffix == ".safetensors"


def _opened_safetensors(path: Path):
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise ConversionError(
            f"{path}: not a readable safetensors file ({_first_line(error)}); download it again"
        ) from error


def _unpickling_problem(path: Path, reason: str) -> str:
    for line in reason.splitlines():
        if "Unsupported global" in line or "GLOBAL" in line:
            return (
                f"{path}: refused, because unpickling it would run code ({line.strip()}); "
                f"save only the weights: torch.save(model.state_dict(), ...)"
            )
    return f"{path}: not a readable torch file ({reason.splitlines()[0]}); download it again"


def _weights_within(
    path: Path, content: Any
) -> tuple[dict[str, Tensor], str | None, tuple[str, ...]]:
    entry, weights = None, content
    if isinstance(content, Mapping):
        for name in WEIGHT_ENTRIES:
            if isinstance(content.get(name), Mapping):
                entry, weights = name, content[name]
                break
    tensors = dict(_torch_tensors(weights)) if isinstance(weights, Mapping) else {}
    if not tensors:
        raise ConversionError(
            f"{path}: no tensors found, neither at the top nor under "
            f"{' or '.join(map(repr, WEIGHT_ENTRIES))}"
        )
    beside = content if entry is not None else {k: v for k, v in content.items() if k not in tensors}
    return tensors, entry, tuple(sorted(str(name) for name in beside if name != entry))


def _torch_tensors(weights: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    import torch

    def reader(value: torch.Tensor) -> Callable[[], np.ndarray]:
        # NumPy has no bfloat16; every half precision fits in float32.
        halves = (torch.bfloat16, torch.float16)
        return lambda: (value.float() if value.dtype in halves else value).numpy()

    for name, value in weights.items():
        if isinstance(value, torch.Tensor):
            dtype = str(value.dtype).removeprefix("torch.")
            yield str(name), Tensor(tuple(value.shape), dtype, reader(value.detach()))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
