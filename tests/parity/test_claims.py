"""Torch files that claim more than they hold: refused before torch sees them, in little memory."""

import ast
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from convert.errors import ConversionError
from convert.source import open_source
from tests.parity.sources import saved

ROOT = Path(__file__).parents[2]
GIB = 2**30
MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
OLD = {"_use_new_zipfile_serialization": False}

# Prints the refusal and by how many bytes the peak of memory grew over what was there before.
MEASURE = """
import resource, sys, torch
from convert.errors import ConversionError
from convert.source import open_source

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before = peak()
try:
    open_source(sys.argv[1])
    print("read")
except ConversionError as error:
    print(error)
print(1024 * (peak() - before))
"""


def refusal(path) -> str:
    """The one line that a file is refused with, in a process of its own, with bounded memory."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    text, grown = done.stdout.splitlines()
    assert done.stderr == ""
    assert int(grown) < 100 * 2**20
    prefix = f"{path}: not a readable torch file ("
    assert text.startswith(prefix)
    return text.removeprefix(prefix).partition("); download it again, or save the ")[0]


def problem(path) -> str:
    """Likewise in this process, for what can't hurt it."""
    with pytest.raises(ConversionError) as caught:
        open_source(path)
    (text,) = caught.value.problems
    return text.removeprefix(f"{path}: not a readable torch file (").partition("); download")[0]


def records_of(path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(path, records, *, compressed=()):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            method = zipfile.ZIP_DEFLATED if name in compressed else zipfile.ZIP_STORED
            archive.writestr(name, content, method)
    return path


@pytest.fixture
def whole(tmp_path):
    return saved({"model": {"x": torch.ones(3, 5)}}, tmp_path / "whole.pth")


def test_a_file_packed_anew_is_read(tmp_path, whole):
    path = packed(tmp_path / "model.pth", records_of(whole))
    assert open_source(path).tensors["x"].read().tolist() == [[1.0] * 5] * 3


@pytest.mark.parametrize("record", ["data.pkl", "data/0"])
def test_a_zip_bomb(tmp_path, whole, record):
    path = tmp_path / "bomb.pth"
    zeros = bytes(16 * 2**20)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in records_of(whole).items():
            if name != f"whole/{record}":
                archive.writestr(name, content, zipfile.ZIP_STORED)
                continue
            with archive.open(name, "w", force_zip64=True) as file:
                for _ in range(4 * GIB // len(zeros)):
                    file.write(zeros)
    assert path.stat().st_size < GIB / 20
    assert refusal(path) == f"record 'whole/{record}' is compressed, which torch never does"


@pytest.mark.parametrize("record", ["whole/data.pkl", "whole/data/0", "whole/version"])
def test_a_compressed_record(tmp_path, whole, record):
    path = packed(tmp_path / "model.pth", records_of(whole), compressed=[record])
    assert problem(path) == f"record '{record}' is compressed, which torch never does"


@pytest.mark.parametrize("twin", ["whole/data/0", "whole/data.pkl", "WHOLE/Data.pkl"])
def test_a_record_twice(tmp_path, whole, twin):
    path = packed(tmp_path / "model.pth", records_of(whole))
    with zipfile.ZipFile(path, "a") as archive:
        if twin in archive.namelist():
            with pytest.warns(UserWarning, match="Duplicate name"):
                archive.writestr(twin, b"another")
        else:
            archive.writestr(twin, b"another")
    assert problem(path) == f"record '{twin}' twice"


def test_a_record_that_is_missing(tmp_path, whole):
    records = records_of(whole)
    del records["whole/data/0"]
    path = packed(tmp_path / "model.pth", records)
    assert problem(path) == "record data/'0' is missing"


def test_a_record_longer_than_the_file(tmp_path, whole):
    content = bytearray(packed(tmp_path / "model.pth", records_of(whole)).read_bytes())
    start = content.index(b"PK\1\2")
    struct.pack_into("<LL", content, start + 20, 10**9, 10**9)
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    assert problem(path) == "record 'whole/data.pkl' is not within the file"


@pytest.mark.parametrize(("offset", "value"), [(12, 2**32 - 1), (12, 10), (16, 2**31), (16, 0)])
def test_a_directory_that_is_elsewhere(tmp_path, whole, offset, value):
    content = bytearray(packed(tmp_path / "model.pth", records_of(whole)).read_bytes())
    struct.pack_into("<L", content, len(content) - 22 + offset, value)
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    assert problem(path) == "its directory is not where it should be"


def test_a_directory_too_long(tmp_path, whole):
    records = records_of(whole) | {f"whole/{index:0200}": b"" for index in range(20_000)}
    assert "a directory of " in refusal(packed(tmp_path / "model.pth", records))


def test_something_behind_the_archive(tmp_path, whole):
    path = tmp_path / "model.pth"
    path.write_bytes(whole.read_bytes() + bytes(10))
    assert problem(path) == "its directory is missing"


@pytest.mark.parametrize("options", [{}, OLD], ids=["zip", "before zip"])
def test_a_tensor_larger_than_its_record(tmp_path, options):
    path = saved({"x": torch.ones(100_000)}, tmp_path / "whole.pth", **options)
    said, claimed = pickle.dumps(100_000, 2)[2:-1], pickle.dumps(2**29, 2)[2:-1]
    if options:
        path.write_bytes(path.read_bytes().replace(said, claimed))
        wanted = f"its tensors claim {4 * 2**29} bytes, it has {path.stat().st_size}"
    else:
        records = records_of(path)
        records["whole/data.pkl"] = records["whole/data.pkl"].replace(said, claimed)
        packed(path, records)
        wanted = f"data/0 has 400000 bytes, said to be {4 * 2**29}"
    assert refusal(path) == wanted


@pytest.mark.parametrize("count", [10**15, 2**63, -1])
def test_an_old_file_of_an_impossible_storage(tmp_path, count):
    identity = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0aX\3\0\0\0cpu"
    number = pickle.dumps(count, 2)[2:-1]
    content = b"\x80\2" + identity + number + b"NtQ."
    path = tmp_path / "model.pth"
    path.write_bytes(MAGIC + content + pickle.dumps(["a"], 2) + struct.pack("<q", 1) + bytes(4))
    text = refusal(path)
    if count < 0:
        assert text == "a storage of impossible type or size"
    else:
        assert text == f"its tensors claim {4 * count} bytes, it has {path.stat().st_size}"


def nested(depth: int) -> bytes:
    """A dict whose key is a tuple in a tuple, and so on."""
    return b"}N" + b"\x85" * depth + b"Ns"


def doubled(depth: int) -> bytes:
    """A dict whose key is a tuple of two of the same tuples, and so on: hashing takes 2**depth."""
    return b"}N" + b"q\0h\0\x86" * depth + b"Ns"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (nested(1_000_000), "tuples nested 51 deep, of 52 values"),
        (doubled(45), "values"),
        (b"cbuiltins\nbytearray\n\x8a\5" + (2**36).to_bytes(5, "little") + b"\x85R", "of a size"),
        (b"c__builtin__\nbytearray\nJ\0\0\0\x70\x85R", "of a size without values"),
        (b"ctorch\nFloatTensor\nJ\0\0\0\x70\x85R", "of a size without values"),
        (b"]" * 2_100_000, "more than 2000000 opcodes"),
        (b"(" + b"N0" * 10, "opcode POP, which files of weights have not"),
        (b"X\0\0\0\x20" + b"x" * (17 * 2**20), "a longer pickle than files of weights have"),
        (b"c" + b"x" * (17 * 2**20), "a longer pickle than files of weights have"),
        (b"h\7", "a value that the pickle lacks"),
        (b"(q\0", "a value that the pickle lacks"),
    ],
    ids=range(11),
)
@pytest.mark.parametrize("kind", ["zip", "before zip"])
def test_a_pickle_that_would_end_the_process(tmp_path, whole, kind, body, text):
    path = tmp_path / "model.pth"
    content = b"\x80\2" + body + b"."
    if kind == "zip":
        packed(path, records_of(whole) | {"whole/data.pkl": content})
        if len(content) > 16 * 2**20:
            text = f"data.pkl of {len(content)} bytes"
    else:
        path.write_bytes(MAGIC + content + pickle.dumps([], 2))
    assert text in refusal(path)


def test_one_storage_named_a_thousand_times(tmp_path):
    row = torch.ones(1000)
    path = saved({f"x.{index}": row for index in range(1000)}, tmp_path / "model.pth")
    assert "its tensors claim 4000000 bytes, the file has " in problem(path)


def test_tensors_that_share_a_storage_are_read(tmp_path):
    row = torch.arange(1000.0)
    path = saved({"a": row, "b": row, "c": row[10:20]}, tmp_path / "model.pth")
    assert open_source(path).tensors["c"].read().tolist() == list(range(10, 20))


def test_torch_is_never_asked_to_run_code():
    found = []
    for file in sorted((*ROOT.glob("convert/*.py"), *ROOT.glob("videomae_jax/**/*.py"))):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            called = isinstance(node, ast.Call) and ast.unparse(node.func)
            assert called not in ("pickle.load", "pickle.loads", "torch.jit.load"), file
            if called in ("torch.load", "load") and "torch" in file.read_text(encoding="utf-8"):
                options = {option.arg: ast.unparse(option.value) for option in node.keywords}
                found.append((file.name, options.get("weights_only")))
    # One place, and a constant there.
    assert found == [("torch_file.py", "True")]


@pytest.mark.parametrize("variable", ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"])
def test_no_variable_turns_the_protection_off(tmp_path, monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    path = saved({"model": {"x": torch.ones(2)}, "args": print}, tmp_path / "model.pth")
    with pytest.raises(ConversionError, match="refused, because it asks for print"):
        open_source(path)
