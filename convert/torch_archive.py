"""The zip that torch writes, looked at before torch sees it: where each record lies, how long.

torch unpacks a compressed record into memory of any size that the directory claims, and readers of
zip differ in which of two records of one name they take. torch writes neither.
"""

import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

from convert.pickle_scan import MOST_BYTES, Limited, Scan

# A record takes some 70 bytes here, a thousand tensors 70 kB.
MOST_DIRECTORY_BYTES = 4 * 2**20

END = struct.Struct("<4s4H2LH")
END_64 = struct.Struct("<4sQ2H2L4Q")
LOCATOR_64 = struct.Struct("<4sLQL")
LOCAL = struct.Struct("<4s5H3L2H")


def check_archive(path: Path) -> None:
    """Refuse an archive that claims more than it holds.

    Raises:
        ValueError: for a directory that is damaged or could be read in two ways, a record that is
            compressed or outside the file, or a tensor larger than its record.
        zipfile.BadZipFile, NotImplementedError, OSError: likewise.
    """
    with path.open("rb") as file:
        directory = _directory_start(file, path.stat().st_size)
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
        folder = entries[0].orig_filename.partition("/")[0].lower() if entries else ""
        if any(entry.orig_filename.lower() == f"{folder}/constants.pkl" for entry in entries):
            raise ValueError("a TorchScript archive, whose model is a program")
        spans = {}
        for entry in entries:
            if entry.orig_filename.lower() in spans:
                raise ValueError(f"record {_short(entry.orig_filename)} twice")
            spans[entry.orig_filename.lower()] = _span(file, entry, directory)
        if f"{folder}/data.pkl" not in spans:
            raise ValueError("an archive without data.pkl")
        start, size = spans[f"{folder}/data.pkl"]
        if size > MOST_BYTES:
            raise ValueError(f"data.pkl of {size} bytes")
        file.seek(start)
        storages = Scan().read(Limited(file, size)).storages
    for key, claimed in storages.items():
        record = spans.get(f"{folder}/data/{key}".lower())
        if record is None:
            raise ValueError(f"record data/{_short(key)} is missing")
        if claimed > record[1]:
            raise ValueError(f"data/{key} has {record[1]} bytes, said to be {claimed}")


def _directory_start(file: BinaryIO, size: int) -> int:
    """Where the directory begins, if the file ends as torch's files do, without a comment.

    The two ends that a large archive has must agree, or readers could take different directories.
    """
    end_at = size - END.size
    signature, *_, length, start, comment = _unpack(END, file, end_at)
    if signature != b"PK\5\6" or comment:
        raise ValueError("its directory is missing")
    before = _unpack(LOCATOR_64, file, end_at - LOCATOR_64.size)
    if before[0] == b"PK\6\7":
        end_at -= LOCATOR_64.size + END_64.size
        wide = _unpack(END_64, file, end_at)
        if wide[0] != b"PK\6\6" or before[2] != end_at:
            raise ValueError("its directory is missing")
        for narrow, full in ((start, wide[9]), (length, wide[8])):
            if narrow not in (full, 2**32 - 1):
                raise ValueError("it has two directories")
        start, length = wide[9], wide[8]
    if start + length != end_at:
        raise ValueError("its directory is not where it should be")
    if length > MOST_DIRECTORY_BYTES:
        raise ValueError(f"a directory of {length} bytes")
    return start


def _span(file: BinaryIO, entry: zipfile.ZipInfo, directory: int) -> tuple[int, int]:
    """Where the bytes of a record start, and how many they are."""
    name = entry.orig_filename
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        raise ValueError(f"record {_short(name)} is compressed, which torch never does")
    header = _unpack(LOCAL, file, entry.header_offset)
    start = entry.header_offset + LOCAL.size + header[9] + header[10]
    same = entry.compress_size == entry.file_size
    if header[0] != b"PK\3\4" or not same or start + entry.file_size > directory:
        raise ValueError(f"record {_short(name)} is not within the file")
    if not (name.isascii() and name.isprintable()):
        raise ValueError("a record without a plain name")
    return start, entry.file_size


def _unpack(layout: struct.Struct, file: BinaryIO, offset: int) -> tuple:
    if offset < 0:
        raise ValueError("cut short")
    file.seek(offset)
    content = file.read(layout.size)
    if len(content) < layout.size:
        raise ValueError("cut short")
    return layout.unpack(content)


def _short(name: str) -> str:
    return ascii(name[:80])
