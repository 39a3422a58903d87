"""Clips whose frames carry their own number in black and white, so that decoding can be proven.

Upper half: eight blocks, the bits of the number, most significant first. Lower half: red on the
left, blue on the right.
"""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT = 64, 48
# Clockwise degrees -> the matrix (a, b, c, d) of an MP4 track that says so.
MATRICES = {0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}


def picture(number: int) -> np.ndarray:
    """uint8 [48, 64, 3]."""
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for place in range(8):
        frame[: HEIGHT // 2, 8 * place : 8 * place + 8] = 255 * (number >> (7 - place) & 1)
    frame[HEIGHT // 2 :, : WIDTH // 2, 0] = 255
    frame[HEIGHT // 2 :, WIDTH // 2 :, 2] = 255
    return frame


def number(frame: np.ndarray) -> int:
    """The inverse of `picture`, for what a codec left of it."""
    bits = [frame[6:18, 8 * place + 2 : 8 * place + 6].mean() > 128 for place in range(8)]
    return int("".join(str(int(bit)) for bit in bits), 2)


def numbers(frames: np.ndarray) -> list[int]:
    """The numbers that frames [T, 48, 64, 3] carry."""
    return [number(frame) for frame in frames]


def write_clip(
    path: Path,
    count: int,
    *,
    codec: str = "libx264",
    container: str | None = None,
    times: list[int] | None = None,
    pix_fmt: str = "yuv420p",
    size: tuple[int, int] = (WIDTH, HEIGHT),
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    title: str | None = None,
) -> Path:
    """A clip of `count` frames, 25 a second or at `times` in milliseconds."""
    with av.open(str(path), "w", format=container, options=container_options or {}) as output:
        if title is not None:
            output.metadata["title"] = title
        stream = output.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        stream.options = options or {}
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(picture(index), format="rgb24")
            if size != (WIDTH, HEIGHT):
                frame = frame.reformat(width=size[0], height=size[1])
            if times is not None:
                frame.pts, frame.time_base = times[index], Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


def write_sound(path: Path, codec: str) -> Path:
    """Half a second of silence."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=8000, layout="mono")
        for start in range(0, 4096, 1024):
            samples = np.zeros((1, 1024), np.float32 if codec == "aac" else np.int16)
            frame = av.AudioFrame.from_ndarray(
                samples, format="fltp" if codec == "aac" else "s16", layout="mono"
            )
            frame.sample_rate, frame.pts = 8000, start
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


def write_song(path: Path) -> Path:
    """Sound with the picture of a cover beside it, as players of music show it."""
    with av.open(str(path), "w") as container:
        sound = container.add_stream("mp3", rate=44100)
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(np.zeros((48, 32, 3), np.uint8), format="rgb24")
        silence = av.AudioFrame.from_ndarray(
            np.zeros((1, 2 * 1152), np.int16), format="s16", layout="stereo"
        )
        silence.rate = 44100
        for stream, each in ((cover, frame), (sound, silence)):
            for packet in [*stream.encode(each), *stream.encode()]:
                container.mux(packet)
    return path


def rotate(path: Path, degrees: int) -> None:
    """Note in an MP4 that its pictures are to be shown turned clockwise."""
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4 + 40
    a, b, c, d = MATRICES[degrees]
    one = 1 << 16
    matrix = (a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    content[start : start + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(content)


def lie_about_frames(path: Path, count: int) -> None:
    """Overwrite the frame counts in the headers of an AVI."""
    content = bytearray(path.read_bytes())
    total = content.index(b"avih") + 8 + 16
    length = content.index(b"strh") + 8 + 32
    for place in (total, length):
        content[place : place + 4] = struct.pack("<I", count)
    path.write_bytes(content)
