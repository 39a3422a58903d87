"""Example -> clip: which of its frames, decoded and squeezed onto a canvas; by number.

A place in the whole row of examples, over all epochs and processes, has a number, and everything
random is drawn for that number: which example stands there, and which of its frames are taken.
"""

import functools
from collections.abc import Iterator

import numpy as np

from videomae_jax import sampling
from videomae_jax.config import VideoMAEConfig
from videomae_jax.decoders import VideoError
from videomae_jax.resizing import resize_pil
from videomae_jax.training.examples import Examples
from videomae_jax.training.settings import Input
from videomae_jax.video import read_chosen

Arrays = dict[str, np.ndarray]
Clip = tuple[Arrays, tuple[tuple[int, str], ...]]

# Each rule with chance in it, and the one without that evaluation takes in its place.
RANDOM = {
    "kinetics_train": (sampling.kinetics_train, "kinetics"),
    "ssv2_train": (sampling.ssv2_train, "ssv2"),
    "pretraining": (sampling.pretraining, "kinetics"),
}
# So many bad videos after each other are no accident: a disk is gone, or the paths are wrong.
MOST_BAD = 100
# Batches of an endless run; Grain asks for a length.
ENDLESS = 1 << 40
# What chance is drawn for: which order, which frames.
ORDER, FRAMES = 0, 1


def canvas_of(examples: Examples, settings: Input, config: VideoMAEConfig) -> tuple[int, int]:
    """Height and width of the frames in the batches.

    Raises:
        ValueError: for packed examples on another canvas than the settings say.
    """
    packed = examples.packed
    if settings.canvas:
        wanted = (settings.canvas, settings.canvas)
    elif packed is not None:
        return packed.canvas
    else:
        height, width = config.image_size
        wanted = (round(height * 8 / 7), round(width * 8 / 7))
    if packed is not None and packed.canvas != wanted:
        raise ValueError(
            f"{packed.folder}: is packed at {packed.canvas[0]}x{packed.canvas[1]}, input.canvas "
            f"asks for {wanted[0]}x{wanted[1]}; set it to 0, or pack again"
        )
    return wanted


class Clips:
    """One process's share of all clips, by number: what Grain reads from, in any order.

    A clip is ({name: array}, ((index, what is wrong with it), ...)), the second for the bad videos
    that were tried before; `valid` is False where there was no good one.
    """

    def __init__(
        self,
        examples: Examples,
        settings: Input,
        config: VideoMAEConfig,
        *,
        train: bool,
        seed: int,
        share: tuple[int, int],
        patience: int,
    ):
        self.examples, self.settings, self.train, self.seed = examples, settings, train, seed
        self.process, processes = share
        self.batch = settings.batch_size // processes
        self.patience = patience if train else 1
        self.num_frames = config.num_frames
        self.canvas = canvas_of(examples, settings, config)

    def __len__(self) -> int:
        return self.batch * (ENDLESS if self.train else -(-len(self.examples) // self._whole))

    def __getitem__(self, index: int) -> Clip:
        step, place = divmod(index, self.batch)
        position = step * self._whole + self.process * self.batch + place
        bad: list[tuple[int, str]] = []
        for example in self._candidates(position):
            try:
                return self._clip(example, *self._read(example, position)), tuple(bad)
            except VideoError as error:
                bad.append((example, str(error)))
        return self._nothing(bad[-1][0] if bad else -1), tuple(bad)

    @property
    def _whole(self) -> int:
        return self.settings.batch_size

    def _candidates(self, position: int) -> Iterator[int]:
        """The example for a position, and those that take its place if it is bad."""
        count = len(self.examples)
        if not self.train:
            yield from range(position, min(position + 1, count))
            return
        epoch, place = divmod(position, count)
        order = _order(count, self.seed, epoch)
        for further in range(self.patience):
            yield int(order[(place + further) % count])

    def _read(self, index: int, position: int) -> tuple[np.ndarray, tuple[int, int]]:
        """The frames of an example, and the size that they had."""
        choose = functools.partial(self._choose, position)
        packed = self.examples.packed
        if packed is not None:
            try:
                indices = choose(int(packed.counts[index]))
            except ValueError as error:
                raise VideoError(f"{self.examples.paths[index]}: {error}") from error
            height, width = packed.sizes[index].tolist()
            return packed.frames(index, np.array(indices)), (height, width)
        size = (0, 0)

        def squeeze(frame: np.ndarray) -> np.ndarray:
            nonlocal size
            size = frame.shape[:2]
            return frame if size == self.canvas else resize_pil(frame, *self.canvas)

        seen = read_chosen(self.examples.paths[index], choose, squeeze, threads=False)
        return np.stack([seen.made[each] for each in choose(seen.count)]), size

    def _choose(self, position: int, count: int) -> list[int]:
        """The frames of a video of `count`; the same whenever it is asked for a position."""
        rule, frames = self.settings.sampling, self.num_frames
        if rule not in RANDOM or not self.train:
            rule = RANDOM[rule][1] if rule in RANDOM else rule
            return sampling.sample(rule, count, frames, rate=self.settings.rate).tolist()
        if count < 1:
            raise ValueError("it has no frames")
        generator = np.random.default_rng((self.seed, FRAMES, position))
        draw = RANDOM[rule][0]
        # One frame of each segment: no distance between frames.
        rate = {} if rule == "ssv2_train" else {"rate": self.settings.rate}
        return draw(count, frames, generator=generator, **rate).tolist()

    def _clip(self, index: int, frames: np.ndarray, size: tuple[int, int]) -> Arrays:
        labels = self.examples.labels
        clip = {
            "frames": frames,
            "sizes": np.array(size, np.int32),
            "index": np.array(index, np.int32),
            "valid": np.array(True),
        }
        return clip if labels is None else clip | {"labels": np.array(labels[index])}

    def _nothing(self, index: int) -> Arrays:
        """A black clip, which is not valid; its index and label are those of the bad video."""
        black = np.zeros((self.num_frames, *self.canvas, 3), np.uint8)
        clip = self._clip(max(index, 0), black, self.canvas)
        return clip | {"index": np.array(index, np.int32), "valid": np.array(False)}


@functools.lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The examples in the order of an epoch. Kept: all clips of it ask for the same."""
    return np.random.default_rng((seed, ORDER, epoch)).permutation(count)
