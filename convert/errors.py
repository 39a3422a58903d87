"""What a conversion can fail with."""

import re
from collections import defaultdict
from collections.abc import Iterator

# A line with two paths of the longest that Linux allows, and room for words.
MOST_CHARACTERS = 10_000


class ConversionError(ValueError):
    """Something in the source or the request that can't be converted.

    `problems` are complete sentences, each naming the file or tensor and, where there is one, the
    mend; the text of the error is all of them, one a line. What a damaged file put into one, a
    line end or a megabyte, does not make it more than a line.
    """

    def __init__(self, *problems: str):
        lines = tuple(map(_as_line, problems))
        super().__init__("\n".join(lines))
        self.problems = lines


class VerificationError(Exception):
    """The converted model does not agree with its reference; the text says at which stage."""


class Problems:
    """What is wrong with a source, gathered so that the same in many layers is said once.

    Falsy when empty.
    """

    def __init__(self):
        self._spans: dict[str, list[tuple[int, int]]] = defaultdict(list)

    def __bool__(self) -> bool:
        return bool(self._spans)

    def add(self, text: str, first: int | None = None, last: int | None = None) -> None:
        """Note a problem of layers `first` to `last`, of that one layer, or of none.

        "{n}" in `text` stands for the layer's number.
        """
        spans = self._spans[text]
        if first is not None:
            spans.append((first, first if last is None else last))

    def add_tensor(self, kind: str, name: str, rest: str) -> None:
        """Note a problem of a tensor of the source."""
        pattern, layer = generalize(name)
        self.add(f"{kind}: {pattern}{rest}", layer)

    def lines(self) -> Iterator[str]:
        """The problems in words, one line each."""
        for text, spans in self._spans.items():
            layers = _spell(spans)
            if "{n}" in text and layers.isdecimal():
                yield text.replace("{n}", layers)
            elif layers:
                yield f"{text}, layer{'' if layers.isdecimal() else 's'} {layers}"
            else:
                yield text


def _as_line(text: str) -> str:
    if len(text) > MOST_CHARACTERS:
        text = f"{text[: MOST_CHARACTERS // 2]} ... {text[-MOST_CHARACTERS // 2 :]}"
    if text.isprintable():
        return text
    spaced = re.sub(r"\s+", " ", text)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in spaced)


def generalize(name: str) -> tuple[str, int | None]:
    """A tensor's name with "{n}" for the first number in it, and that number."""
    found = re.search(r"(?<=\.)[0-9]{1,4}(?=\.)", name)
    if found is None:
        return name, None
    return f"{name[: found.start()]}{{n}}{name[found.end() :]}", int(found[0])


def _spell(spans: list[tuple[int, int]]) -> str:
    """Spans of numbers as in "3, 5-11"."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if merged and first <= merged[-1][1] + 1:
            start, end = merged.pop()
            merged.append((start, max(end, last)))
        else:
            merged.append((first, last))
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in merged)
