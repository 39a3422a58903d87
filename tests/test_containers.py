import struct

import pytest

from videomae_jax.containers import avi_frame_counts, is_text, missing_bytes


def box(kind: bytes, body: bytes, *, wide: bool = False) -> bytes:
    if wide:
        return struct.pack(">I4sQ", 1, kind, 16 + len(body)) + body
    return struct.pack(">I4s", 8 + len(body), kind) + body


def chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def element(identifier: bytes, body: bytes, size_bytes: int = 8) -> bytes:
    size = (len(body) | 1 << 7 * size_bytes).to_bytes(size_bytes)
    return identifier + size + body


EBML = element(b"\x1a\x45\xdf\xa3", b"header", 1)
SEGMENT = b"\x18\x53\x80\x67"
AVI = b"RIFF" + struct.pack("<I", 0) + b"AVI " + chunk(b"LIST", b"hdrl" + chunk(b"avih", b"a" * 7))
WHOLE = {
    "mp4": box(b"ftyp", b"isom") + box(b"moov", b"m" * 50) + box(b"mdat", b"d" * 90),
    "mp4, pictures first": box(b"ftyp", b"isom") + box(b"mdat", b"d" * 90) + box(b"moov", b"m" * 9),
    "mp4 of 64 bits": box(b"ftyp", b"isom") + box(b"mdat", b"d" * 90, wide=True),
    "mp4 in fragments": box(b"ftyp", b"") + 2 * (box(b"moof", b"x") + box(b"mdat", b"y" * 30)),
    "avi": AVI + chunk(b"JUNK", b"odd") + chunk(b"LIST", b"movi" + b"d" * 90),
    "matroska": EBML + element(SEGMENT, b"s" * 100),
    "matroska, short size": EBML + element(SEGMENT, b"s" * 100, 2),
}
OPEN_ENDED = {
    "mp4 to the end": box(b"ftyp", b"isom") + struct.pack(">I4s", 0, b"mdat") + b"d" * 9,
    "mp4 with garbage behind": WHOLE["mp4"] + b"\xff" * 30,
    "live matroska": EBML + SEGMENT + b"\x01" + b"\xff" * 7 + b"s" * 100,
    "live matroska, one byte": EBML + SEGMENT + b"\xff" + b"s" * 100,
    "mpeg program stream": b"\0\0\x01\xba" + b"x" * 50,
    "nothing": b"",
    "a byte": b"R",
    "half a header": EBML[:3],
    "only a matroska header": EBML,
    "an avi that ends in its header": AVI[:20],
}


def missing(tmp_path, content: bytes) -> int:
    path = tmp_path / "file"
    path.write_bytes(content)
    return missing_bytes(path)


@pytest.mark.parametrize("content", [*WHOLE.values(), *OPEN_ENDED.values()])
def test_whole_files_and_those_that_promise_nothing_miss_nothing(tmp_path, content):
    assert missing(tmp_path, content) == 0


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("cut", [1, 7, 30])
def test_the_bytes_cut_off_are_counted(tmp_path, kind, cut):
    content = WHOLE[kind]
    if kind == "mp4, pictures first" and cut == 30:
        # The index is gone with its size: what is missing of the pictures counts.
        assert missing(tmp_path, content[:-cut]) == cut - 17
    else:
        assert missing(tmp_path, content[:-cut]) == cut


def test_text_is_told_from_video(tmp_path):
    path = tmp_path / "file"
    for content in (
        b"#EXTM3U\nclip.mp4",
        b"ffconcat version 1.0",
        b"\xef\xbb\xbfhello",
        b"v=0\r\no",
    ):
        path.write_bytes(content)
        assert is_text(path)
    for content in (*WHOLE.values(), b"", b"GIF89a\1\0", b"YUV4MPEG2 W4 H4", b"OggS\0\2\0\0"):
        path.write_bytes(content)
        assert not is_text(path)


def test_the_frame_counts_of_an_avi_are_found(tmp_path):
    path = tmp_path / "file"
    header = chunk(b"avih", b"\0" * 16 + b"TOTL" + b"\0" * 36)
    stream = chunk(b"strh", b"vids" + b"\0" * 28 + b"LENG" + b"\0" * 20)
    lists = chunk(b"LIST", b"hdrl" + header + chunk(b"LIST", b"strl" + stream))
    content = b"RIFF\0\0\0\0AVI " + lists + chunk(b"LIST", b"movi" + b"avihstrh")
    path.write_bytes(content)
    assert [content[place : place + 4] for place in avi_frame_counts(path)] == [b"TOTL", b"LENG"]
    path.write_bytes(WHOLE["mp4"])
    assert avi_frame_counts(path) == []
