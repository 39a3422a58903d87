"""Named tensors -> parameter tree, by the rules of a layout; every problem at once."""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from convert.errors import ConversionError
from convert.layouts import PARTS, Layout, Rule
from convert.source import Tensor

FLOATS = ("F64", "F32", "F16", "BF16", "float64", "float32", "float16", "bfloat16")

# A place in the tree that one tensor fills: (path, layer or None, part or None).
Slot = tuple[str, int | None, str | None]


@dataclasses.dataclass(frozen=True)
class Assignment:
    """One tensor and the slot that it fills."""

    name: str
    tensor: Tensor
    rule: Rule
    slot: Slot


def translate(
    tensors: Mapping[str, Tensor],
    layout: Layout,
    like: Mapping[str, Any],
    *,
    progress: Callable[[Iterable], Iterable] = iter,
) -> dict[str, Any]:
    """Fill a tree of float32 NumPy arrays with the shapes of `like`.

    Reads one tensor at a time into its final place, so that it takes the memory of one model.
    `progress` may wrap the iteration over the tensors.

    Raises:
        ConversionError: with every one of: no rule, filled twice, never filled, wrong shape, not a
            float, not finite.
    """
    shapes = {path: leaf.shape for path, leaf in flatten(like).items()}
    assignments, problems = plan(tensors, layout, shapes)
    leaves = {path: np.empty(shape, np.float32) for path, shape in shapes.items()}
    for assignment in progress(assignments):
        values = assignment.rule.change(assignment.tensor.read())
        unfit = int(np.size(values) - np.count_nonzero(np.isfinite(values)))
        if unfit:
            problems.append(f"not finite: {assignment.name} holds {unfit} NaN or Inf")
        view(leaves, assignment.slot)[...] = values
    if problems:
        raise ConversionError(*problems)
    return unflatten(leaves)


def plan(
    tensors: Mapping[str, Tensor], layout: Layout, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[list[Assignment], list[str]]:
    """Which tensor fills which slot, and every problem that shows before a value is read."""
    wide = any(path.startswith("encoder/") for path in shapes)
    filled: dict[Slot, list[str]] = defaultdict(list)
    assignments, problems = [], []
    for name, tensor in tensors.items():
        found = layout.find(layout.strip(name))
        if found is None:
            problems.append(f"no rule: {name} {list(tensor.shape)}")
            continue
        rule, layer = found
        path = rule.target if wide else rule.target.removeprefix("encoder/")
        if path not in shapes:
            problems.append(f"no rule: {name} {list(tensor.shape)} has no place in this network")
            continue
        stacked = "{n}" in rule.pattern
        if stacked and layer >= shapes[path][0]:
            problems.append(
                f"no rule: {name} is of layer {layer}, the config has {shapes[path][0]} layers"
            )
            continue
        slot = (path, layer if stacked else None, rule.part)
        filled[slot].append(name)
        wrong = _unfit(name, tensor, rule, slot, shapes)
        if wrong:
            problems.append(wrong)
        else:
            assignments.append(Assignment(name, tensor, rule, slot))
    problems += [
        f"filled twice: {describe(slot)} by {' and '.join(names)}"
        for slot, names in filled.items()
        if len(names) > 1
    ]
    problems += [f"never filled: {describe(slot)}" for slot in _unfilled(shapes, filled)]
    return assignments, problems


def view(leaves: Mapping[str, np.ndarray], slot: Slot) -> np.ndarray:
    """The part of the tree that a slot stands for, to be written into."""
    path, layer, part = slot
    leaf = leaves[path] if layer is None else leaves[path][layer]
    if part is None:
        return leaf
    width = leaf.shape[-1] // len(PARTS)
    start = PARTS.index(part) * width
    return leaf[..., start : start + width]


def describe(slot: Slot) -> str:
    """A slot in words: path, then layer and part where there are any."""
    path, layer, part = slot
    return path + (f", layer {layer}" if layer is not None else "") + (f", {part}" if part else "")


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
    name: str, tensor: Tensor, rule: Rule, slot: Slot, shapes: Mapping[str, tuple[int, ...]]
) -> str | None:
    """Why the tensor can't fill the slot, from its shape and dtype alone."""
    if tensor.dtype not in FLOATS:
        return f"not a float: {name} is {tensor.dtype}"
    # Stand-ins without memory behind them: only the shapes are asked for.
    wanted = view({slot[0]: np.broadcast_to(np.float32(0), shapes[slot[0]])}, slot).shape
    try:
        given = rule.change(np.broadcast_to(np.float32(0), tensor.shape)).shape
    except (ValueError, IndexError):
        given = tensor.shape
    if given != wanted:
        return (
            f"wrong shape: {name} {list(tensor.shape)} makes {list(given)}, "
            f"{describe(slot)} is {list(wanted)}"
        )
    return None


def _unfilled(
    shapes: Mapping[str, tuple[int, ...]], filled: Mapping[Slot, list[str]]
) -> Iterable[Slot]:
    for path, shape in shapes.items():
        layers = range(shape[0]) if "layers/" in path else (None,)
        packed = path.endswith("qkv/kernel")
        for layer in layers:
            if (path, layer, None) in filled:
                continue
            for part in PARTS if packed else (None,):
                if (path, layer, part) not in filled:
                    yield path, layer, part
