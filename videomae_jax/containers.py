"""What the first bytes of a video file tell, before a decoder sees it.

Is it as long as its container says? A decoder just stops where a truncated file does, and the clip
made of what it saw looks whole. But MP4, WebM and AVI all open with sizes: the part that holds the
pictures must end inside the file. (Counts of frames in a header are no evidence: they lie in files
that are whole.)
"""

import os
from typing import BinaryIO

# What a name of a video file ends in, in lower case.
VIDEO_SUFFIXES = frozenset(
    ".3g2 .3gp .asf .avi .divx .f4v .flv .m2ts .m2v .m4v .mkv .mov .mp4 .mpe .mpeg .mpg .mts .mxf "
    ".ogm .ogv .ts .vob .webm .wmv .y4m".split()
)
# Matroska's identifiers of the file header and of the part that holds everything else.
EBML_HEADER, SEGMENT = 0x1A45DFA3, 0x18538067
# MP4's boxes at the top level: what else follows a box is no box.
BOXES = frozenset(
    b"ftyp moov mdat moof mfra sidx styp free skip wide udta meta uuid pnot prft emsg".split()
)
# Videos that begin in plain text; all other text is a playlist or no video at all.
TEXTUAL = (b"RIFF", b"GIF8", b"YUV4MPEG", b"nut/")


def is_text(path: str | os.PathLike) -> bool:
    """Whether a file begins as text does.

    Some text is a list of other files to libav, which would open them.
    """
    with open(path, "rb") as file:
        start = file.read(9).removeprefix(b"\xef\xbb\xbf")[:8]
    readable = all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in start)
    return bool(start) and readable and not start.startswith(TEXTUAL)


def missing_bytes(path: str | os.PathLike) -> int:
    """Bytes between the end of a file and the end that its container promises; 0 if it is whole.

    0, too, for formats other than MP4/MOV, Matroska/WebM and AVI, and for live recordings, which
    promise nothing.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(12)
        file.seek(0)
        if start[:4] == b"RIFF":
            return max(_riff_end(file, size) - size, 0)
        if int.from_bytes(start[:4]) == EBML_HEADER:
            return max(_matroska_end(file) - size, 0)
        if start[4:8] in BOXES:
            return max(_mp4_end(file, size) - size, 0)
    return 0


def _mp4_end(file: BinaryIO, size: int) -> int:
    """Where the last box ends (ISO/IEC 14496-12, 4.2)."""
    position = 0
    while position + 8 <= size:
        file.seek(position)
        header = file.read(16)
        length, kind = int.from_bytes(header[:4]), header[4:8]
        if length == 1:
            length = int.from_bytes(header[8:16])
        # A length of 0 is "to the end of the file".
        if length < 8 or kind not in BOXES:
            return 0
        position += length
    return position


def _riff_end(file: BinaryIO, size: int) -> int:
    """Where the list of pictures ends: "movi", in RIFF's list of lists."""
    position = 12
    while position + 12 <= size:
        file.seek(position)
        header = file.read(12)
        length = int.from_bytes(header[4:8], "little")
        end = position + 8 + length
        if header[:4] == b"LIST" and header[8:12] == b"movi":
            return end
        # Chunks start at even places.
        position = end + end % 2
    return 0


def _matroska_end(file: BinaryIO) -> int:
    """Where the segment ends (RFC 8794); 0 where its size is not known, as in live recordings."""
    _element_id(file)
    header_size = _element_size(file)
    if header_size is None:
        return 0
    file.seek(header_size, os.SEEK_CUR)
    if _element_id(file) != SEGMENT:
        return 0
    segment_size = _element_size(file)
    return 0 if segment_size is None else file.tell() + segment_size


def _element_id(file: BinaryIO) -> int:
    first = file.read(1)
    if not first or first[0] == 0:
        return 0
    return int.from_bytes(first + file.read(8 - first[0].bit_length()))


def _element_size(file: BinaryIO) -> int | None:
    """A variable-length integer: as many bytes as its first has leading zeros, plus one."""
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    length = 9 - first[0].bit_length()
    value = int.from_bytes(first + file.read(length - 1)) & ((1 << 7 * length) - 1)
    return None if value == (1 << 7 * length) - 1 else value


def avi_frame_counts(path: str | os.PathLike) -> list[int]:
    """Where in a file the header of an AVI says how many frames it has; nowhere in other files.

    Two unsigned 32-bit numbers: dwTotalFrames of "avih" and dwLength of the first "strh".
    """
    with open(path, "rb") as file:
        header = file.read(65536).partition(b"movi")[0]
    if header[:4] != b"RIFF" or header[8:12] != b"AVI ":
        return []
    places = ((header.find(b"avih"), 8 + 16), (header.find(b"strh"), 8 + 32))
    return [start + offset for start, offset in places if start >= 0]
