"""Torch files that claim more than they hold: refused before torch sees them, in little memory."""

import ast
import pickle
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import pytest
import torch

from convert.errors import ConversionError
from convert.source import open_source
from tests.parity.sources import saved

ROOT = Path(__file__).parents[2]
MOST_GROWTH = 100 * 2**20
MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
OLD = {"_use_new_zipfile_serialization": False}

# Prints the refusals, and by how many bytes the peak of memory grew over what was there before.
MEASURE = """
import resource, sys, torch
from convert.errors import ConversionError
from convert.source import open_source

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before = peak()
for path in sys.argv[1:]:
    try:
        open_source(path)
        print("read")
    except ConversionError as error:
        print(error)
print(1024 * (peak() - before))
"""


def refusals(*paths) -> list[str]:
    """The line that each file is refused with, in a process of their own, with bounded memory."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, paths)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    *texts, grown = done.stdout.splitlines()
    assert done.stderr == ""
    assert int(grown) < MOST_GROWTH
    return [reason(path, text) for path, text in zip(paths, texts, strict=True)]


def reason(path, text) -> str:
    prefix = f"{path}: not a readable torch file ("
    assert text.startswith(prefix)
    return text.removeprefix(prefix).partition("); download it again, or save the ")[0]


def problem(path) -> str:
    """Likewise in this process, for what can't hurt it."""
    with pytest.raises(ConversionError) as caught:
        open_source(path)
    (text,) = caught.value.problems
    return reason(path, text)


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


def test_zip_bombs(tmp_path, whole):
    """Records of 4 GB of zeros, as the pickle and as a tensor."""
    chunk, count = bytes(16 * 2**20), 255
    pack = zlib.compressobj(1, wbits=-15)
    small = b"".join(pack.compress(chunk) for _ in range(count)) + pack.flush()
    crc = 0
    for _ in range(count):
        crc = zlib.crc32(chunk, crc)
    paths = []
    for record in ("whole/data.pkl", "whole/data/0"):
        path = tmp_path / f"{record[6:].replace('/', '-')}.pth"
        content = bytearray(packed(path, records_of(whole) | {record: small}).read_bytes())
        for signature, start in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
            found = content.index(record.encode(), content.index(signature))
            header = content.rindex(signature, 0, found)
            struct.pack_into("<H", content, header + start, zipfile.ZIP_DEFLATED)
            struct.pack_into("<L", content, header + start + 6, crc)
            struct.pack_into("<L", content, header + start + 14, count * len(chunk))
        path.write_bytes(content)
        with zipfile.ZipFile(path) as archive, archive.open(record) as file:
            assert file.read(10**6) == bytes(10**6)
        paths.append(path)
    said = "is compressed, which torch never does"
    assert refusals(*paths) == [f"record 'whole/data.pkl' {said}", f"record 'whole/data/0' {said}"]


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
    path = packed(tmp_path / "model.pth", records)
    (text,) = refusals(path)
    assert text.startswith("a directory of ")


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
    assert refusals(path) == [wanted]


def test_old_files_of_impossible_storages(tmp_path):
    identity = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0aX\3\0\0\0cpu"
    end = b"NtQ." + pickle.dumps(["a"], 2) + struct.pack("<q", 1) + bytes(4)
    wanted = {}
    for count in (10**15, 2**63, -1):
        path = tmp_path / f"{count}.pth"
        path.write_bytes(MAGIC + b"\x80\2" + identity + pickle.dumps(count, 2)[2:-1] + end)
        claim = f"its tensors claim {4 * count} bytes, it has {path.stat().st_size}"
        wanted[path] = claim if count > 0 else "a storage of impossible type or size"
    assert refusals(*wanted) == list(wanted.values())


SIZE = "of a size without values"
LONG = "a longer pickle than files of weights have"


def nested(depth: int) -> bytes:
    """A dict whose key is a tuple in a tuple, and so on."""
    return b"}N" + b"\x85" * depth + b"Ns"


def doubled(depth: int) -> bytes:
    """A dict whose key is a tuple of two of the same tuples, and so on: hashing takes 2**depth."""
    return b"}N" + b"q\0h\0\x86" * depth + b"Ns"


HOSTILE = [
    (nested(1_000_000), "tuples nested 51 deep, of 52 values"),
    (doubled(45), "tuples nested 16 deep, of 131071 values"),
    (b"cbuiltins\nbytearray\n\x8a\5" + (2**36).to_bytes(5, "little") + b"\x85R", SIZE),
    (b"c__builtin__\nbytearray\nJ\0\0\0\x70\x85R", SIZE),
    (b"ctorch\nFloatTensor\nJ\0\0\0\x70\x85R", SIZE),
    (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(cbuiltins\nbytearray\nctorch\nTensor\n"
        b"J\0\0\0\x70\x85}tR",
        "a tensor made by something else",
    ),
    (b"]" * 2_100_000, "more than 2000000 opcodes"),
    (b"(" + b"N0" * 10, "opcode POP, which files of weights have not"),
    (b"X\0\0\0\x20" + b"x" * (17 * 2**20), LONG),
    (b"c" + b"x" * (17 * 2**20), LONG),
    (b"h\7", "a value that the pickle lacks"),
    (b"(q\0", "a value that the pickle lacks"),
]


@pytest.mark.parametrize("kind", ["zip", "before zip"])
def test_pickles_that_would_end_the_process(tmp_path, whole, kind):
    wanted = {}
    for number, (body, text) in enumerate(HOSTILE):
        path = tmp_path / f"{number}.pth"
        content = b"\x80\2" + body + b"."
        wanted[path] = text
        if kind == "before zip":
            path.write_bytes(MAGIC + content + pickle.dumps([], 2))
            continue
        packed(path, records_of(whole) | {"whole/data.pkl": content})
        if text == LONG:
            wanted[path] = f"data.pkl of {len(content)} bytes"
    for found, text in zip(refusals(*wanted), wanted.values(), strict=True):
        assert found.endswith(text)


def test_one_storage_named_a_thousand_times(tmp_path):
    row = torch.ones(1000)
    path = saved({f"x.{index}": row for index in range(1000)}, tmp_path / "model.pth")
    with pytest.raises(ConversionError, match=r": its tensors claim 4000000 bytes, the file has "):
        open_source(path)


@pytest.mark.parametrize("options", [{}, OLD], ids=["zip", "before zip"])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype")
def test_a_nested_tensor(tmp_path, options):
    nested_tensor = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    path = saved({"x": torch.ones(2), "y": nested_tensor}, tmp_path / "model.pth", **options)
    assert problem(path) == "a nested tensor, which no weights are"


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
