"""What a torch pickle would build, told from its opcodes without building any of it.

torch's reader with `weights_only=True` runs no foreign code, but believes sizes and depths: a
storage of any size is allocated, and a key nested a million times ends the process. This scan goes
first. It follows the opcodes that torch's reader knows, and stops where that would stop.
"""

import dataclasses
import pickletools
import re
from collections.abc import Callable
from typing import Any, BinaryIO, cast

# A training file of the largest model, with its optimizer, has 1 MB and 100,000 opcodes.
MOST_BYTES = 16 * 2**20
MOST_OPCODES = 2_000_000
MOST_CALLS = 100_000
# Of tuples, which are hashed to the bottom where they are keys; a random state has 625 numbers.
MOST_DEPTH = 50
MOST_ITEMS = 100_000

ITEM_BYTES = {
    "Double": 8,
    "Float": 4,
    "Half": 2,
    "BFloat16": 2,
    "Long": 8,
    "Int": 4,
    "Short": 2,
    "ComplexDouble": 16,
    "ComplexFloat": 8,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Global:
    """A name that a pickle asks for."""

    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class Built:
    """Something made of other things: a tuple with its items, or the result of a call."""

    items: tuple[Any, ...] = ()
    depth: int = 0
    size: int = 1


OPAQUE = Built()
MARK = object()

CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
NUMBERS = frozenset(("BININT", "BININT1", "BININT2", "LONG1"))
TEXTS = frozenset(("BINUNICODE", "SHORT_BINSTRING", "BINFLOAT"))
EMPTY = frozenset(("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"))
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
# How many values above the object that they change.
CHANGES = {"APPEND": 1, "SETITEM": 2, "BUILD": 1}
PUTS = frozenset(("BINPUT", "LONG_BINPUT"))
GETS = frozenset(("BINGET", "LONG_BINGET"))


class Scan:
    """The scan of one pickle; `storages` are {key: bytes} that it says its tensors lie in."""

    def __init__(self):
        self.storages: dict[str, int] = {}
        self.result: Any = None
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._calls = 0

    def read(self, file: "Limited") -> "Scan":
        """Follow a pickle from where `file` stands to its end, and leave the file there.

        Raises:
            ValueError: for what no file of weights has: an opcode that torch refuses, a storage of
                impossible size, a nesting too deep, too long a pickle.
        """
        try:
            for count, (opcode, argument, _) in enumerate(pickletools.genops(cast(BinaryIO, file))):
                if count > MOST_OPCODES:
                    raise ValueError(f"more than {MOST_OPCODES} opcodes")
                self._step(opcode.name, argument)
        except (IndexError, KeyError) as error:
            raise ValueError("a value that the pickle lacks") from error
        return self

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in NUMBERS or name in TEXTS:
            stack.append(argument)
        elif name in EMPTY:
            stack.append(OPAQUE)
        elif name in TUPLES:
            self._push_tuple(self._pop(TUPLES[name]))
        elif name in CHANGES:
            self._pop(CHANGES[name])
            self._top()
        elif name in PUTS:
            self._memo[argument] = self._top()
        elif name in GETS:
            stack.append(self._memo[argument])
        elif name in OTHERS:
            OTHERS[name](self, argument)
        elif name != "PROTO":
            raise ValueError(f"opcode {name}, which files of weights have not")

    def _top(self) -> Any:
        if self._stack[-1] is MARK:
            raise IndexError
        return self._stack[-1]

    def _pop(self, count: int) -> tuple[Any, ...]:
        values = tuple(self._stack.pop() for _ in range(count))
        if any(value is MARK for value in values):
            raise IndexError
        return values[::-1]

    def _pop_to_mark(self) -> tuple[Any, ...]:
        values = []
        while (value := self._stack.pop()) is not MARK:
            values.append(value)
        return tuple(values[::-1])

    def _push_tuple(self, items: tuple[Any, ...]) -> None:
        depth = 1 + max((item.depth for item in items if isinstance(item, Built)), default=0)
        size = 1 + sum(item.size if isinstance(item, Built) else 1 for item in items)
        if depth > MOST_DEPTH or size > MOST_ITEMS:
            raise ValueError(f"tuples nested {depth} deep, of {size} values")
        self._stack.append(Built(items, depth, size))

    def _change_to_mark(self, _: Any) -> None:
        self._pop_to_mark()
        self._top()

    def _call(self, _: Any) -> None:
        function, arguments = self._pop(2)
        self._calls += 1
        if self._calls > MOST_CALLS:
            raise ValueError(f"more than {MOST_CALLS} calls")
        if not isinstance(arguments, Built):
            raise ValueError("a call without arguments")
        name = function.name if isinstance(function, Global) else ""
        # A number makes that many zeros.
        if name.endswith(("bytearray", "Tensor", "Storage")) and any(
            isinstance(item, int) for item in arguments.items
        ):
            raise ValueError(f"{name} of a size without values")
        # It has no shape to tell, and takes its sizes on trust.
        if name.endswith("_rebuild_nested_tensor"):
            raise ValueError("a nested tensor, which no weights are")
        # It calls its first argument, with the third.
        if name.endswith("_rebuild_from_type_v2"):
            called = arguments.items[0]
            if not (isinstance(called, Global) and called.name.startswith("torch._utils._rebuild")):
                raise ValueError("a tensor made by something else")
        # The result may hold its arguments, and is hashed with them.
        self._stack.append(Built((), arguments.depth, arguments.size))

    def _storage(self, _: Any) -> None:
        (identity,) = self._pop(1)
        items = identity.items if isinstance(identity, Built) else ()
        if len(items) < 5 or _text(items[0]) != "storage":
            raise ValueError("a reference to something that is no storage")
        _, kind, key, _, count = items[:5]
        if not isinstance(kind, Global) or not isinstance(count, int) or count < 0:
            raise ValueError("a storage of impossible type or size")
        found = re.search(r"(\w+)Storage$", kind.name)
        size = count * ITEM_BYTES.get(found[1] if found else "", 1)
        self.storages[_text(key)] = max(size, self.storages.get(_text(key), 0))
        self._stack.append(OPAQUE)

    def _stop(self, _: Any) -> None:
        (self.result,) = self._pop(1)


def _text(value: Any) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)


OTHERS: dict[str, Callable[[Scan, Any], None]] = {
    "GLOBAL": lambda scan, name: scan._stack.append(Global(name.replace(" ", "."))),
    "MARK": lambda scan, _: scan._stack.append(MARK),
    "TUPLE": lambda scan, _: scan._push_tuple(scan._pop_to_mark()),
    "APPENDS": Scan._change_to_mark,
    "SETITEMS": Scan._change_to_mark,
    "REDUCE": Scan._call,
    "NEWOBJ": Scan._call,
    "BINPERSID": Scan._storage,
    "STOP": Scan._stop,
}


class Limited:
    """The part of a file that a pickle may take: at most so many bytes from where it stands."""

    def __init__(self, file: BinaryIO, most: int = MOST_BYTES):
        self._file, self._left = file, most

    def read(self, size: int) -> bytes:
        self._take(size)
        return self._file.read(size)

    def readline(self) -> bytes:
        # One more than is left, so that a longer line is refused and not cut.
        line = self._file.readline(self._left + 1)
        self._take(len(line))
        return line

    def _take(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise ValueError("a longer pickle than files of weights have")
