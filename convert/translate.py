"""Named tensors -> parameter tree, by the rules of a layout; every problem at once."""

import dataclasses
import itertools
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from convert.errors import ConversionError, Problems, generalize
from convert.layouts import PARTS, Layout, Rule
from convert.weights import Tensor

FLOATS = ("F64", "F32", "F16", "BF16", "float64", "float32", "float16", "bfloat16")

MOST_THREADS = 4
# Rows of the target, columns of it: measured best of many on 5120 x 1280 numbers.
BLOCK = (64, 256)

# A place in the tree that one tensor fills: (path, layer or None, part or None).
Slot = tuple[str, int | None, str | None]


@dataclasses.dataclass(frozen=True)
class Assignment:
    """One tensor and the slot that it fills."""

    name: str
    tensor: Tensor
    rule: Rule
    slot: Slot


# Wraps the iteration over the tensors.
Progress = Callable[[list[Assignment]], Iterable[Assignment]]


def translate(
    tensors: Mapping[str, Tensor],
    layout: Layout,
    like: Mapping[str, Any],
    *,
    dtype: np.typing.DTypeLike = np.float32,
    progress: Progress = iter,
) -> dict[str, Any]:
    """Fill a tree of NumPy arrays of one dtype with the shapes of `like`.

    Reads one tensor a thread at a time into its final place, so that it takes the memory of one
    model, and none before every place is known to have its tensor.

    Raises:
        ConversionError: with every one of: no rule, filled twice, never filled, wrong shape, not a
            float, not finite, too large for `dtype`.
    """
    shapes = {path: leaf.shape for path, leaf in flatten(like).items()}
    assignments, problems = plan(tensors, layout, shapes)
    # Only a whole plan is worth the memory; of a broken one the values are looked at all the same.
    whole = not problems
    leaves = {path: np.empty(shape, dtype) for path, shape in shapes.items() if whole}

    def fill(assignment: Assignment) -> tuple[str, str] | None:
        return _fill(assignment, np.dtype(dtype), leaves if whole else None)

    # NumPy lets go of the interpreter's lock while it copies.
    with ThreadPoolExecutor(min(os.cpu_count() or 1, MOST_THREADS)) as pool:
        found = pool.map(fill, assignments)
        for assignment, problem in zip(progress(assignments), found, strict=True):
            if problem is not None:
                problems.add_tensor(problem[0], assignment.name, problem[1])
    if problems:
        raise ConversionError(*problems.lines())
    return unflatten(leaves)


def _fill(
    assignment: Assignment, dtype: np.dtype, leaves: Mapping[str, np.ndarray] | None
) -> tuple[str, str] | None:
    """Read a tensor and put it in its place, if there are leaves; what is wrong with its values."""
    given = assignment.tensor.read()
    # What is too large for the dtype becomes infinite here, and is found.
    with np.errstate(over="ignore"):
        values = given.astype(dtype, copy=False)
    if leaves is not None:
        copy(assignment.rule.change(values), view(leaves, assignment.slot))
    if np.isfinite(values).all():
        return None
    if np.isfinite(given).all():
        return "too large", f" doesn't fit {dtype}"
    return "not finite", " holds NaN or Inf"


def copy(source: np.ndarray, target: np.ndarray) -> None:
    """Copy values; of a transposed matrix block by block, which caches take three times as fast."""
    if source.ndim != 2 or source.flags.c_contiguous:
        target[...] = source
        return
    rows, columns = BLOCK
    for row in range(0, source.shape[0], rows):
        for column in range(0, source.shape[1], columns):
            block = slice(row, row + rows), slice(column, column + columns)
            target[block] = source[block]


def plan(
    tensors: Mapping[str, Tensor], layout: Layout, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[list[Assignment], Problems]:
    """Which tensor fills which slot, and every problem that shows before a value is read."""
    filled: dict[Slot, list[str]] = defaultdict(list)
    assignments, problems = [], Problems()
    for name, tensor in tensors.items():
        found = layout.find(layout.strip(name))
        if found is None:
            problems.add_tensor("no rule", name, f" {list(tensor.shape)}")
            continue
        rule, layer = found
        path = target_path(rule, shapes)
        if path not in shapes:
            rest = f" {list(tensor.shape)} has no place in this network"
            problems.add_tensor("no rule", name, rest)
        elif rule.stacked and layer >= shapes[path][0]:
            rest = f" {list(tensor.shape)} is beyond the config's {shapes[path][0]} layers"
            problems.add_tensor("no rule", name, rest)
        else:
            slot = (path, layer if rule.stacked else None, rule.part)
            filled[slot].append(name)
            if wrong := _unfit(tensor, rule, slot, shapes):
                problems.add_tensor(wrong[0], name, wrong[1])
            else:
                assignments.append(Assignment(name, tensor, rule, slot))
    _add_twice_filled(problems, filled)
    _add_never_filled(problems, filled, layout, shapes)
    return assignments, problems


def target_path(rule: Rule, shapes: Mapping[str, Any]) -> str:
    """Where a rule's tensors go in this tree: a bare encoder's paths lack the first part."""
    wide = any(path.startswith("encoder/") for path in shapes)
    return rule.target if wide else rule.target.removeprefix("encoder/")


def view(leaves: Mapping[str, np.ndarray], slot: Slot) -> np.ndarray:
    """The part of the tree that a slot stands for, to be written into."""
    path, layer, part = slot
    leaf = leaves[path] if layer is None else leaves[path][layer]
    if part is None:
        return leaf
    width = leaf.shape[-1] // len(PARTS)
    start = PARTS.index(part) * width
    return leaf[..., start : start + width]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as {"a/b/c": leaf}."""
    leaves = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        leaves |= flatten(value, f"{path}/") if isinstance(value, Mapping) else {path: value}
    return leaves


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def _unfit(
    tensor: Tensor, rule: Rule, slot: Slot, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[str, str] | None:
    """Why the tensor can't fill the slot, by its shape and dtype: the kind, and what follows."""
    if tensor.dtype not in FLOATS:
        return "not a float", f" is {tensor.dtype}"
    path, layer, part = slot
    wanted = shapes[path] if layer is None else shapes[path][1:]
    if part is not None:
        wanted = (*wanted[:-1], wanted[-1] // len(PARTS))
    try:
        # A stand-in without memory behind it: only the shape is asked for.
        given = rule.change(np.broadcast_to(np.float32(0), tensor.shape)).shape
    except (ValueError, IndexError):
        return (
            "wrong shape",
            f" {list(tensor.shape)} can't be {_describe(path, part)} {list(wanted)}",
        )
    if given != wanted:
        rest = f" makes {list(given)}, {_describe(path, part)} is {list(wanted)}"
        return "wrong shape", f" {list(tensor.shape)}{rest}"
    return None


def _add_twice_filled(problems: Problems, filled: Mapping[Slot, list[str]]) -> None:
    for (path, layer, part), names in filled.items():
        if len(names) > 1:
            sources = " and ".join(generalize(name)[0] for name in names)
            problems.add(f"filled twice: {_describe(path, part)} by {sources}", layer)


def _add_never_filled(
    problems: Problems,
    filled: Iterable[Slot],
    layout: Layout,
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    found = defaultdict(set)
    for path, layer, part in filled:
        found[path, part].add(layer)
    rules = defaultdict(list)
    for rule in layout.rules:
        rules[target_path(rule, shapes)].append(rule)
    for path, shape in shapes.items():
        for part in dict.fromkeys(rule.part for rule in rules[path]) or (None,):
            text = f"never filled: {_describe(path, part)}"
            if not any(rule.stacked for rule in rules[path]):
                if not found[path, part]:
                    problems.add(text)
                continue
            # Between the layers that are there: a config may say a billion of them.
            for before, after in itertools.pairwise([-1, *sorted(found[path, part]), shape[0]]):
                if after - before > 1:
                    problems.add(text, before + 1, after - 1)


def _describe(path: str, part: str | None) -> str:
    return f"{path}, {part}" if part else path
