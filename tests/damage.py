"""Damage to files: one file as a thousand broken ones, drawn from a seed."""

import copy
import json
import random
import re
import struct
from collections.abc import Iterator, Mapping
from typing import Any

EXTREMES = [
    0,
    1,
    127,
    2**15,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**53,
    2**63 - 1,
    2**63,
    2**64 - 1,
]
DTYPES = "F64 F32 F16 BF16 F8_E4M3 F8_E5M2 F4 I64 I32 I16 I8 U64 U8 BOOL C64 F31".split()
STRANGE = [
    None,
    True,
    False,
    0,
    -1,
    3,
    0.5,
    -0.0,
    1e308,
    float("inf"),
    float("nan"),
    2**31,
    2**53,
    2**63,
    2**64,
    10**30,
    10**400,
    "",
    "x",
    "a\nb",
    "\0",
    "\ud800",
    "\u2028",
    "é" * 1000,
    "../model.safetensors",
    "F64",
    [],
    [[]],
    [1, 2, 3],
    [2**40, 2**40],
    {},
    {"": {}},
    {"height": 5},
]
TWICE = "a key that is there twice"


def damage_bytes(content: bytes, draw: random.Random, *, within: range | None = None) -> bytes:
    """One change of any kind, at a place in `within` or anywhere."""
    within = within if within else range(max(len(content), 1))
    at, length = draw.choice(within), draw.choice([1, 1, 2, 4, 8, 30])
    head, tail = content[:at], content[at:]
    chosen = draw.randrange(9)
    if chosen == 0:
        return head
    if chosen == 1 and tail:
        return head + bytes([tail[0] ^ 1 << draw.randrange(8)]) + tail[1:]
    if chosen == 2:
        return head + draw.randbytes(length) + tail[length:]
    if chosen == 3:
        return head + draw.randbytes(length) + tail
    if chosen == 4:
        return head + tail[length:]
    if chosen == 5:
        return head + tail[:length] * 2 + tail[length:]
    if chosen == 6:
        return head + tail[length : 2 * length] + tail[:length] + tail[2 * length :]
    number = draw.choice(EXTREMES)
    if chosen == 7:
        width = draw.choice([2, 4, 8])
        number = (number % 256**width).to_bytes(width, draw.choice(["little", "big"]))
        return head + number + tail[width:]
    return head + re.sub(rb"\d+", str(number).encode(), tail, count=1)


def damage_json(content: Any, draw: random.Random) -> bytes:
    """JSON text with an entry changed, lost, moved or there twice."""
    content = copy.deepcopy(content)
    repeated = ""
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        node = draw.choice(list(_containers(content)))
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            continue
        key, other = draw.choice(keys), draw.choice(keys)
        chosen = draw.randrange(6)
        if chosen == 0:
            del node[key]
        elif chosen == 1:
            node[key], node[other] = copy.deepcopy(node[other]), node[key]
        elif chosen == 2 and isinstance(node, dict):
            node[str(draw.choice(STRANGE))[:100]] = node.pop(key)
        elif chosen == 3 and isinstance(node, dict):
            node[TWICE] = draw.choice([node[key], _strange(draw)])
            repeated = key
        else:
            node[key] = _strange(draw)
    text = json.dumps(content)
    return text.replace(json.dumps(TWICE), json.dumps(repeated)).encode()


def _strange(draw: random.Random) -> Any:
    return copy.deepcopy(draw.choice(STRANGE))


def _containers(content: Any) -> Iterator[Any]:
    if isinstance(content, (dict, list)):
        yield content
        for value in content.values() if isinstance(content, dict) else content:
            yield from _containers(value)


def damage_text(content: Any, draw: random.Random) -> bytes:
    """JSON of `content`, its meaning damaged, or its bytes, or both."""
    chosen = draw.randrange(4)
    text = json.dumps(content).encode() if chosen == 0 else damage_json(content, draw)
    return damage_bytes(text, draw) if chosen in (0, 1) else text


def damage_safetensors(content: bytes, draw: random.Random) -> bytes:
    """A safetensors file, damaged in what its header says or in its bytes, most in the header."""
    end = 8 + struct.unpack("<Q", content[:8])[0]
    chosen = draw.randrange(8)
    if chosen == 0:
        return damage_bytes(content, draw)
    if chosen == 1:
        return damage_bytes(content, draw, within=range(end))
    header, data = json.loads(content[8:end]), content[end:]
    text = damage_header(header, draw) if chosen < 6 else damage_text(header, draw)
    length = len(text) if draw.randrange(10) else draw.choice([*EXTREMES, len(text) + 1])
    if draw.randrange(8) == 0:
        data = draw.choice([data[:-1], data + b"\0", data * 2, b""])
    return struct.pack("<Q", length % 2**64) + text + data


def damage_header(header: Mapping[str, Any], draw: random.Random) -> bytes:
    """A safetensors header whose entries contradict each other, or the file."""
    header = copy.deepcopy(dict(header))
    names = [name for name in header if name != "__metadata__"]
    entry, other = (header[draw.choice(names)] for _ in range(2))
    chosen = draw.randrange(8)
    if chosen == 0:
        entry["dtype"] = draw.choice(DTYPES)
    elif chosen == 1:
        entry["data_offsets"] = other["data_offsets"]
    elif chosen == 2:
        entry["data_offsets"], other["data_offsets"] = other["data_offsets"], entry["data_offsets"]
    elif chosen == 3:
        side = draw.randrange(2)
        entry["data_offsets"][side] += draw.choice([-4, -1, 1, 4, 2**40, 2**63, -(2**63)])
    elif chosen == 4:
        entry["shape"] = [draw.choice(EXTREMES) for _ in range(draw.randrange(5))]
    elif chosen == 5:
        entry["shape"] = [*entry["shape"], *draw.choice([[1], [1] * 40, [0], [1] * 200])]
    elif chosen == 6:
        entry["shape"] = [0, *entry["shape"]]
        entry["data_offsets"] = [entry["data_offsets"][0]] * 2
    else:
        header[TWICE] = draw.choice([entry, other])
    repeated = json.dumps(draw.choice(names))
    return json.dumps(header).replace(json.dumps(TWICE), repeated).encode()
