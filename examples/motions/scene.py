"""Frames of two textured shapes that move in one of twelve ways, over a textured background.

Everything but the motion is drawn the same way for every class: number, shapes, sizes, textures,
colours and places of what is seen, and the shaking of the camera. No single frame tells the class.
Lengths are in sides of the (square) picture, time goes from -1/2 to 1/2 over the clip.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from PIL import Image

MOTIONS = (
    "moving left",
    "moving right",
    "moving up",
    "moving down",
    "coming closer",
    "going away",
    "turning clockwise",
    "turning anticlockwise",
    "bouncing",
    "meeting",
    "parting",
    "standing still",
)

SPRITE = 48
"""Pixels along a side of the picture of a shape, before it is scaled."""
TRAVEL = (0.35, 0.7)
"""Range of the distance that a shape moves in a clip."""
GROWTH = (1.7, 2.8)
"""Range of the factor by which a shape grows or shrinks."""
TURN = (0.3, 0.9)
"""Range of the turn in a clip, in full circles."""
HOPS = (1.5, 3.0)
"""Range of the number of hops of a bouncing shape."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pose:
    """Where a shape is at one time: centre (x, y), size and angle, in radians, clockwise."""

    x: float = 0.0
    y: float = 0.0
    size: float = 1.0
    angle: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """A picture with its outline, uint8 [SPRITE, SPRITE, 4], and its pose at time 0."""

    picture: Image.Image
    pose: Pose


Path = Callable[[float], Pose]
"""What motion adds to a pose at a time; sizes are factors."""


def draw_clip(
    generator: np.random.Generator, motion: str, *, frames: int = 32, side: int = 96
) -> np.ndarray:
    """One clip, uint8 [frames, side, side, 3]; all that is random comes from `generator`.

    Raises:
        ValueError: for another motion than those of `MOTIONS`.
    """
    if motion not in MOTIONS:
        raise ValueError(f"no motion {motion!r}; one of: {', '.join(MOTIONS)}")
    # The appearance is drawn first and the motion last, so that neither depends on the other.
    backdrop = _backdrop(generator, side)
    shapes = _shapes(generator)
    shake = _shake(generator, frames)
    paths = _paths(generator, motion, shapes)
    clip = np.empty((frames, side, side, 3), np.uint8)
    for number, time in enumerate(np.linspace(-0.5, 0.5, frames)):
        clip[number] = _frame(backdrop, shapes, [path(time) for path in paths], shake[number], side)
    noise = generator.normal(0, generator.uniform(0, 3), clip.shape[1:])
    return np.clip(clip + noise, 0, 255).astype(np.uint8)


def _backdrop(generator: np.random.Generator, side: int) -> Image.Image:
    """A smooth texture, somewhat larger than the picture, so that the camera can shake."""
    texture = _texture(generator, cells=int(generator.integers(3, 9)), contrast=60)
    wide = round(1.2 * side)
    return Image.fromarray(texture).resize((wide, wide), Image.Resampling.BICUBIC)


def _texture(generator: np.random.Generator, *, cells: int, contrast: int) -> np.ndarray:
    """uint8 [cells, cells, 3]: a colour, and deviations from it."""
    colour = generator.uniform(30, 225, 3)
    deviations = generator.uniform(-contrast, contrast, (cells, cells, 3))
    return np.clip(colour + deviations, 0, 255).astype(np.uint8)


def _shapes(generator: np.random.Generator) -> list[Shape]:
    """Two shapes, side by side in a random direction, anywhere in the picture."""
    direction, apart = generator.uniform(0, 2 * math.pi), generator.uniform(0.35, 0.55)
    middle = generator.uniform(0.35, 0.65, 2)
    across = np.array([math.cos(direction), math.sin(direction)]) * apart / 2
    return [
        Shape(
            picture=_sprite(generator),
            pose=Pose(
                x=float(place[0]),
                y=float(place[1]),
                size=generator.uniform(0.26, 0.38),
                angle=generator.uniform(0, 2 * math.pi),
            ),
        )
        for place in (middle - across, middle + across)
    ]


def _sprite(generator: np.random.Generator) -> Image.Image:
    """A coarse texture, cut out as a polygon of 3 to 7 corners of unequal lengths."""
    texture = _texture(generator, cells=int(generator.integers(3, 6)), contrast=110)
    picture = Image.fromarray(texture).resize((SPRITE, SPRITE), Image.Resampling.NEAREST)
    corners = int(generator.integers(3, 8))
    radii = generator.uniform(0.7, 1.0, corners)
    y, x = (np.mgrid[:SPRITE, :SPRITE] + 0.5) / SPRITE * 2 - 1
    # Inside a polygon the radius at an angle lies below the line between two corners.
    place = (np.arctan2(y, x) / (2 * np.pi) % 1) * corners
    first = place.astype(int) % corners
    second, part = (first + 1) % corners, place % 1
    step = 2 * np.pi / corners
    line = (radii[first] * radii[second] * np.sin(step)) / (
        radii[first] * np.sin(step * part) + radii[second] * np.sin(step * (1 - part))
    )
    inside = np.hypot(x, y) < line
    picture.putalpha(Image.fromarray((255 * inside).astype(np.uint8)))
    return picture


def _shake(generator: np.random.Generator, frames: int) -> np.ndarray:
    """[frames, 2]: where the camera looks, trembling by up to about one part in a hundred."""
    return generator.normal(0, generator.uniform(0, 0.006), (frames, 2))


def _paths(generator: np.random.Generator, motion: str, shapes: list[Shape]) -> list[Path]:
    """What each of the two shapes does; both do the same, at speeds of their own."""
    if motion in ("meeting", "parting"):
        return _towards(generator, shapes, sign=1 if motion == "meeting" else -1)
    return [_path(generator, motion) for _ in shapes]


def _path(generator: np.random.Generator, motion: str) -> Path:
    travel, growth = generator.uniform(*TRAVEL), math.log(generator.uniform(*GROWTH))
    turn, hops = 2 * math.pi * generator.uniform(*TURN), generator.uniform(*HOPS)
    start = generator.uniform()
    return {
        "moving left": lambda time: Pose(x=-travel * time),
        "moving right": lambda time: Pose(x=travel * time),
        "moving up": lambda time: Pose(y=-travel * time),
        "moving down": lambda time: Pose(y=travel * time),
        "coming closer": lambda time: Pose(size=math.exp(growth * time)),
        "going away": lambda time: Pose(size=math.exp(-growth * time)),
        "turning clockwise": lambda time: Pose(angle=turn * time),
        "turning anticlockwise": lambda time: Pose(angle=-turn * time),
        "bouncing": lambda time: Pose(y=0.15 - travel / 2 * _hop(hops * (time + 0.5) + start)),
        "standing still": lambda time: Pose(),
    }[motion]


def _hop(time: float) -> float:
    """Height of a ball that hops once a unit of time, between 0 and 1."""
    part = time % 1
    return 4 * part * (1 - part)


def _towards(generator: np.random.Generator, shapes: list[Shape], *, sign: int) -> list[Path]:
    """Each shape goes along the line through both, past its place at time 0."""
    first, second = (shape.pose for shape in shapes)
    across = np.array([second.x - first.x, second.y - first.y])
    across *= sign * generator.uniform(*TRAVEL) / np.linalg.norm(across)

    def path(part: float) -> Path:
        return lambda time: Pose(x=part * across[0] * time, y=part * across[1] * time)

    return [path(0.6), path(-0.6)]


def _frame(
    backdrop: Image.Image,
    shapes: list[Shape],
    moved: list[Pose],
    shake: np.ndarray,
    side: int,
) -> np.ndarray:
    margin = (backdrop.width - side) / 2
    left, top = margin + side * shake[0], margin + side * shake[1]
    picture = backdrop.transform(
        (side, side),
        Image.Transform.AFFINE,
        (1, 0, left, 0, 1, top),
        Image.Resampling.BILINEAR,
    )
    for shape, pose in zip(shapes, moved, strict=True):
        _paste(picture, shape, pose, shake, side)
    return np.asarray(picture)


def _paste(picture: Image.Image, shape: Shape, moved: Pose, shake: np.ndarray, side: int) -> None:
    """Draw a shape into a picture: the inverse map, from pixels of the picture to the sprite's."""
    size = side * shape.pose.size * moved.size
    x = side * (shape.pose.x + moved.x - shake[0])
    y = side * (shape.pose.y + moved.y - shake[1])
    angle = shape.pose.angle + moved.angle
    reach = math.ceil(0.75 * size)
    left, top = math.floor(x) - reach, math.floor(y) - reach
    cosine, sine = math.cos(angle) * SPRITE / size, math.sin(angle) * SPRITE / size
    x, y = x - left, y - top
    drawn = shape.picture.transform(
        (2 * reach, 2 * reach),
        Image.Transform.AFFINE,
        (
            *(cosine, sine, SPRITE / 2 - cosine * x - sine * y),
            *(-sine, cosine, SPRITE / 2 + sine * x - cosine * y),
        ),
        Image.Resampling.BILINEAR,
    )
    picture.paste(drawn, (left, top), drawn)
