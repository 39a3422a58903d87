"""Damaged torch files, zip and older: 2,000 of each are read or refused in words."""

import io
import pickletools
import warnings
import zipfile

import pytest
import torch

from convert.source import open_source
from tests.damage import EXTREMES, damage_bytes
from tests.fuzz import COMMANDS, COUNT, command_reader, run_cases
from tests.parity.sources import HEADS, SIZES, Original, original_model

FILE = "pytorch_model.bin"
OLD = {"_use_new_zipfile_serialization": False}


def small_content():
    """A training file with a few tensors of every kind that a reader meets."""
    generator = torch.Generator().manual_seed(0)
    tied = torch.randn(4, 6, generator=generator)
    return {
        "model": {
            "patch_embed.proj.weight": torch.randn(4, 3, 2, 4, 4, generator=generator),
            "head.weight": torch.nn.Parameter(torch.randn(4, 6, generator=generator)),
            "tied": tied,
            "view": tied[1:, :3],
            "half": torch.ones(4, dtype=torch.bfloat16),
            "step": torch.tensor(3),
            "mask": torch.tensor([True, False]),
            "empty": torch.zeros(0, 5),
        },
        "model_ema": {"head.weight": torch.zeros(4, 6)},
        "epoch": 7,
        "args": {"lr": 1e-3, "betas": (0.9, 0.95), "nested": [[1], {"a": None}]},
    }


def saved(content, **options) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def read_all(folder) -> None:
    for tensor in open_source(folder).tensors.values():
        # What is no plain array is offered by name, and refused when read.
        values = tensor.read()
        assert values.shape == tensor.shape


def damage_pickle(content, draw):
    """A pickle with opcodes lost, repeated, swapped, with other arguments, or with other bytes."""
    if draw.randrange(4) == 0:
        return damage_bytes(content, draw)
    starts = [position for _, _, position in pickletools.genops(content)]
    opcodes = [content[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]
    for _ in range(draw.choice([1, 1, 2, 4])):
        at, other = draw.randrange(len(opcodes)), draw.randrange(len(opcodes))
        chosen = draw.randrange(6)
        if chosen == 0:
            opcodes[at] = b""
        elif chosen == 1:
            opcodes[at] = opcodes[at] * 2
        elif chosen == 2:
            opcodes[at], opcodes[other] = opcodes[other], opcodes[at]
        elif chosen == 3:
            opcodes[at] = opcodes[other]
        elif chosen == 4 and opcodes[at]:
            opcodes[at] = opcodes[at][:1] + draw.randbytes(len(opcodes[at]) - 1)
        else:
            opcodes[at] = another_number(draw)
    return b"".join(opcodes)


def another_number(draw):
    """A whole number of any size, as a pickle says it."""
    number = draw.choice([*EXTREMES, -1, -(2**31), 10**30, 5, 24, 384])
    return b"\x8a\x10" + number.to_bytes(16, "little", signed=True)


def damage_archive(content, draw):
    """The records of a zip packed anew: another pickle, compressed, twice, missing, or cut."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        records = [(name, archive.read(name)) for name in archive.namelist()]
    chosen = draw.randrange(8)
    at = draw.randrange(len(records))
    method = zipfile.ZIP_STORED
    if chosen < 4:
        records = [
            (name, damage_pickle(data, draw) if name.endswith("data.pkl") else data)
            for name, data in records
        ]
    elif chosen == 4:
        records.append(records[at])
    elif chosen == 5:
        del records[at]
    elif chosen == 6:
        records[at] = records[at][0], damage_bytes(records[at][1], draw)
    else:
        method = zipfile.ZIP_DEFLATED
    file = io.BytesIO()
    # It warns of two records of one name.
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w") as archive:
        warnings.simplefilter("ignore")
        for number, (name, data) in enumerate(records):
            archive.writestr(name, data, method if number == at else zipfile.ZIP_STORED)
    return file.getvalue()


def structure(content):
    """Where in a zip no tensor lies: the pickle, and everything from the last record on."""
    pickle = max(content.find(b"data.pkl"), 40)
    last = max(content.rfind(b"PK\3\4"), 0)
    return [range(pickle - 40, min(pickle + 1500, len(content))), range(last, len(content))]


def assert_both(outcomes) -> None:
    """Damage that is always found, or never, tests little."""
    assert sum(outcomes.values()) == COUNT
    assert outcomes["refused"] > COUNT / 4
    assert outcomes["read"] > COUNT / 100


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    return path


def damage_old(content, draw):
    """A file of five pickles and the tensors behind them, one of those damaged."""
    parts, rest = [], content
    for _ in range(5):
        *_, (_, _, stop) = pickletools.genops(rest)
        parts.append(rest[: stop + 1])
        rest = rest[stop + 1 :]
    at = draw.choice([0, 1, 2, 3, 3, 3, 3, 4, 4, 5])
    if at == 5:
        rest = damage_bytes(rest, draw)
    else:
        parts[at] = damage_pickle(parts[at], draw)
    return b"".join(parts) + rest


def draw_archive(whole):
    """The zip packed anew from damaged records, or the bytes of its structure damaged, or both."""

    def draw_files(draw):
        found = damage_archive(whole, draw) if draw.randrange(2) else whole
        if found == whole or draw.randrange(4) == 0:
            within = draw.choice([*structure(found), range(len(found))])
            found = damage_bytes(found, draw, within=within)
        return {FILE: found}

    return draw_files


def draw_old(whole):
    """The pickles of a file from before zip damaged, or its bytes."""

    def draw_files(draw):
        damage = damage_old if draw.randrange(4) else damage_bytes
        return {FILE: damage(whole, draw)}

    return draw_files


def test_archives(folder):
    assert_both(run_cases("torch, zip", folder, draw_archive(saved(small_content())), read_all))


def test_files_from_before_zip(folder):
    draw = draw_old(saved(small_content(), **OLD))
    assert_both(run_cases("torch, before zip", folder, draw, read_all))


@pytest.mark.parametrize("kind", ["zip", "before zip"])
def test_the_whole_command(folder, capsys, kind):
    content = {"model": original_model(Original()).state_dict(), "epoch": 7}
    draw = draw_old(saved(content, **OLD)) if kind != "zip" else draw_archive(saved(content))
    read = command_reader(capsys, FILE, *SIZES, *HEADS)
    outcomes = run_cases(f"the command, torch, {kind}", folder, draw, read, count=COMMANDS)
    assert sum(outcomes.values()) == COMMANDS
    assert outcomes["refused"]
