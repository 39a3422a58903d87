"""The map of the house: imports point down, every file has its place, rooms stay small."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A file or folder of videomae_jax imports from strictly higher rows of this table only.
LAYERS = (
    (
        "activations",
        "array_files",
        "background",
        "cache_folder",
        "command",
        "containers",
        "fields",
        "kernels",
        "labels",
        "precision",
        "published",
        "resizing",
        "sampling",
        "scores",
        "writing",
    ),
    ("attention", "boxed", "compile_cache", "config", "decoders", "preprocess_fields", "tables"),
    ("processing", "video"),
    ("flops", "layers", "masking", "sharding", "tokens", "views", "weights"),
    ("checkpoint", "encoder", "losses"),
    ("pretrainer",),
    ("model",),
    ("inference",),
    ("batches", "model_digest"),
    ("evaluation",),
    ("training",),
    ("__init__",),
    ("commands",),
    ("__main__",),
)
# Folders that count as one room, whose files may import each other.
SHARED_ROOMS = {"commands", "kernels", "training"}
LAYER_OF = {room: layer for layer, rooms in enumerate(LAYERS) for room in rooms}
FORBIDDEN = {
    "videomae_jax": {"convert", "tpu", "torch", "transformers"},
    "convert": {"tpu"},
    "tpu": {"convert"},
}
# The one door: what a user hands over unconverted.
ALLOWED = {("videomae_jax", "inference", "convert.cache")}
VAGUE_NAMES = {"common", "helpers", "misc", "utils"}
MAX_LINES = 350


def violations(root: Path) -> list[str]:
    """Every breach of the map below `root`, as "file:line: what is wrong"."""
    found = []
    for package in ("videomae_jax", "convert", "tpu", "examples", "benchmarks", "tests"):
        for file in sorted((root / package).rglob("*.py")):
            where = file.relative_to(root)
            text = file.read_text(encoding="utf-8")
            if file.stem in VAGUE_NAMES:
                found.append(f"{where}: name the idea instead")
            if package != "tests" and text.count("\n") > MAX_LINES:
                found.append(f"{where}: {text.count(chr(10))} lines, which is its second idea?")
            room = where.parts[1].removesuffix(".py")
            if package == "videomae_jax" and room not in LAYER_OF:
                found.append(f"{where}: has no row in LAYERS")
            elif package in FORBIDDEN:
                for line, target in imports(text):
                    if reason := breach(package, room, target):
                        found.append(f"{where}:{line}: {reason}")
    return found


def imports(text: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import in a source text, those inside functions included."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            # `from package import name` may mean the module of that name.
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)


def breach(package: str, room: str, target: str) -> str | None:
    """What is wrong with `target` being imported by a file in `room` of `package`, if anything."""
    if target.startswith("."):
        return "relative import"
    top, *rest = target.split(".")
    if (package, room, target) in ALLOWED:
        return None
    if top in FORBIDDEN[package]:
        return f"{package} may not import {top}"
    if not top == package == "videomae_jax":
        return None
    wanted = rest[0] if rest and rest[0] in LAYER_OF else "__init__"
    if LAYER_OF[wanted] >= LAYER_OF[room] and not (wanted == room and room in SHARED_ROOMS):
        return f"{room} (layer {LAYER_OF[room]}) imports {wanted} (layer {LAYER_OF[wanted]})"
    return None


def test_the_map_holds():
    found = violations(ROOT)
    assert not found, "\n".join(found)


def test_the_map_lists_no_file_that_is_gone():
    rooms = {path.stem for path in (ROOT / "videomae_jax").iterdir()}
    assert set(LAYER_OF) <= rooms, sorted(set(LAYER_OF) - rooms)


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("videomae_jax/config.py", "from videomae_jax.model import VideoEncoder", ":1: config"),
        ("videomae_jax/config.py", "from videomae_jax import model", ":1: config"),
        ("videomae_jax/config.py", "import videomae_jax.video", "layer 1) imports video (layer 2)"),
        ("videomae_jax/config.py", "import videomae_jax as vm", ":1: config"),
        ("videomae_jax/config.py", "from . import labels", "relative import"),
        ("videomae_jax/model.py", "def f():\n    import convert.rules", ":2: videomae_jax may not"),
        ("videomae_jax/model.py", "if 1:\n    from torch import nn", ":2: videomae_jax may not"),
        ("videomae_jax/model.py", "from convert import cache", ":1: videomae_jax may not import"),
        ("videomae_jax/inference.py", "from convert import job", ":1: videomae_jax may not"),
        ("videomae_jax/inference.py", "import convert", ":1: videomae_jax may not"),
        ("videomae_jax/kernels/x.py", "import videomae_jax.labels", "layer 0) imports labels"),
        ("videomae_jax/attic.py", "", "has no row in LAYERS"),
        ("videomae_jax/attic/room.py", "", "has no row in LAYERS"),
        ("convert/rules.py", "import tpu.reader", "convert may not import tpu"),
        ("tpu/reader.py", "from convert import rules", "tpu may not import convert"),
        ("convert/utils.py", "", "name the idea"),
        ("convert/rules.py", "\n" * 351, "351 lines"),
    ],
)
def test_a_breach_is_found(tmp_path, file, text, complaint):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    (found,) = violations(tmp_path)
    assert found.startswith(file)
    assert complaint in found


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("videomae_jax/config.py", "from videomae_jax.labels import Labels"),
        ("videomae_jax/__init__.py", "from videomae_jax.inference import load"),
        ("videomae_jax/__main__.py", "import videomae_jax as vm"),
        ("videomae_jax/inference.py", "def f():\n    from convert import cache"),
        ("videomae_jax/kernels/x.py", "from videomae_jax.kernels.batch_parallel import y"),
        ("convert/rules.py", "import torch\nfrom videomae_jax.checkpoint import save"),
        ("examples/quickstart/clip.py", "import convert, tpu, torch"),
    ],
)
def test_what_is_allowed_passes(tmp_path, file, text):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    assert not violations(tmp_path)
