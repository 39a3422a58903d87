"""What do class numbers mean? Label names, and logits -> ranked (name, probability)."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Prediction(NamedTuple):
    """One class of a ranking; `probability` is a Python float in [0, 1]."""

    index: int
    label: str
    probability: float


class TopK(list[tuple[str, float]]):
    """A plain list of (label, probability), highest first, that prints one class a line."""

    def __str__(self) -> str:
        return "\n".join(f"{probability:.4f}  {label}" for label, probability in self)


@dataclasses.dataclass(frozen=True)
class Labels:
    """The name of every class, in the order of the logits; names may repeat, none is blank.

    Raises:
        ValueError: for a name that is not a string, or is blank, naming its class number.
    """

    names: tuple[str, ...]

    def __post_init__(self):
        _check_names(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> str:
        return self.names[index]

    @classmethod
    def numbered(cls, count: int) -> "Labels":
        """LABEL_0, LABEL_1 and so on: what transformers calls classes without names."""
        if count < 0:
            raise ValueError(f"the number of labels must be at least 0, got {count}")
        return cls(tuple(f"LABEL_{index}" for index in range(count)))

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "Labels":
        """From the contents of a Hugging Face `config.json`: its `id2label`.

        Without one, numbered labels: `num_labels` of them, or two as in transformers.

        Raises:
            ValueError: if `id2label` does not name each class from 0 to n - 1 once, or if
                `label2id` or `num_labels` contradicts it.
        """
        id2label, num_labels = config.get("id2label"), config.get("num_labels")
        if isinstance(num_labels, bool) or not isinstance(num_labels, int | None):
            raise ValueError(f"num_labels must be a whole number, got {num_labels!r}")
        if id2label is None:
            labels = cls.numbered(2 if num_labels is None else num_labels)
        else:
            labels = cls.from_list(_names_in_order(id2label))
        if num_labels is not None and num_labels != len(labels):
            raise ValueError(f"num_labels {num_labels!r} contradicts id2label of {len(labels)}")
        if config.get("label2id") is not None:
            _check_inverse(labels, config["label2id"])
        return labels

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Labels":
        """From a UTF-8 text file, one name a line, line i (from 0) being class i.

        Space around a name and blank lines at the end are dropped; quotes and commas are part of
        the name; any line ends, with or without a byte order mark.

        Raises:
            ValueError: one line naming the file (and the line) when it can't be read, is not
                UTF-8, is empty, or has a blank line before the last name.
        """
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}: byte {error.start} is not UTF-8; save the labels as UTF-8, one a line"
            ) from None
        except OSError as error:
            raise ValueError(
                f"{path}: {error.strerror or error}; wanted a text file, one label a line"
            ) from None
        # Not splitlines(): that would also cut at characters that can stand inside a name.
        names = [line.strip() for line in text.rstrip().split("\n")]
        if names == [""]:
            raise ValueError(f"{path}: no labels; wanted one a line")
        if "" in names:
            line = names.index("") + 1
            raise ValueError(f"{path}, line {line}: blank; name the class or delete the line")
        return cls(tuple(names))

    @classmethod
    def from_list(cls, names: Any) -> "Labels":
        """The inverse of `to_list`.

        Raises:
            ValueError: for anything but a list of names.
        """
        _check_names(names)
        return cls(tuple(names))

    def to_list(self) -> list[str]:
        """The names, ready for JSON."""
        return list(self.names)

    def rank(
        self, logits: Any, k: int | np.integer = 5, *, multi_label: bool = False
    ) -> list[Prediction]:
        """The k classes with the highest logits, highest first; of equals the lower index.

        Args:
            logits: real numbers [num_labels] of one clip, a NumPy or JAX array or a list.
            k: at least 1; more than there are classes gives all of them.
            multi_label: each class is a question of its own: sigmoid instead of softmax.

        Probabilities are computed on the host in float64.

        Raises:
            ValueError: for k below 1, logits of another shape, or a logit that is not finite.
        """
        _check_count(k)
        values = self._check_logits(logits)
        probabilities = sigmoid(values) if multi_label else softmax(values)
        # By logits: probabilities that are 0 or 1 in floating point are still in order.
        return self._named(probabilities, np.argsort(-values, kind="stable")[:k])

    def rank_probabilities(self, probabilities: Any, k: int | np.integer = 5) -> list[Prediction]:
        """The k most probable classes, as `rank`, of probabilities [num_labels].

        Raises:
            ValueError: as `rank`.
        """
        _check_count(k)
        values = self._check_logits(probabilities)
        return self._named(values, np.argsort(-values, kind="stable")[:k])

    def _named(self, probabilities: np.ndarray, order: np.ndarray) -> list[Prediction]:
        return [
            Prediction(int(index), self.names[index], float(probabilities[index]))
            for index in order
        ]

    def top_k(self, logits: Any, k: int | np.integer = 5) -> list[tuple[str, float]]:
        """[(name, probability)], highest first: `rank` without the class numbers."""
        return TopK((found.label, found.probability) for found in self.rank(logits, k))

    def _check_logits(self, logits: Any) -> np.ndarray:
        try:
            values = np.asarray(logits).astype(np.float64, casting="unsafe")
        except (TypeError, ValueError) as error:
            raise ValueError(f"logits must be real numbers, got {logits!r}") from error
        if values.shape != (len(self),) or not len(self):
            hint = "; pass one clip's, such as logits[0]" if values.ndim == 2 else ""
            raise ValueError(
                f"logits must be [num_labels] = [{len(self)}], got {list(values.shape)}{hint}"
            )
        if not np.isfinite(values).all():
            index = int(np.argmin(np.isfinite(values)))
            raise ValueError(f"logits must be finite, got {values[index]} for class {index}")
        return values


def _check_count(k: Any) -> None:
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise ValueError(f"k must be a whole number of at least 1, got {k!r}")


def _check_names(names: Any) -> None:
    if not isinstance(names, (list, tuple)):
        raise ValueError(f"labels must be a list of names, got {names!r}")
    for index, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"label {index} must be a name, got {name!r}")


def _names_in_order(id2label: Any) -> list[Any]:
    if not isinstance(id2label, Mapping):
        raise ValueError(f"id2label must map class numbers to names, got {id2label!r}")
    names: dict[int, Any] = {}
    for key, name in id2label.items():
        index = int(key) if isinstance(key, str) and key.isdecimal() else key
        if isinstance(index, bool) or not isinstance(index, int):
            raise ValueError(f"id2label has {key!r} where a class number should be")
        if index in names:
            raise ValueError(f"id2label names class {index} twice")
        names[index] = name
    missing = sorted(set(range(len(names))) - set(names))
    if missing:
        raise ValueError(f"id2label has {len(names)} names, but none for class {missing[0]}")
    return [names[index] for index in range(len(names))]


def _check_inverse(labels: Labels, label2id: Any) -> None:
    if not isinstance(label2id, Mapping):
        raise ValueError(f"label2id must map names to class numbers, got {label2id!r}")
    # Sets, because a name that repeats has several numbers, of which label2id can hold one.
    numbers: dict[str, set[str]] = {}
    for index, name in enumerate(labels.names):
        if name not in label2id:
            raise ValueError(f"id2label says class {index} is {name!r}, label2id lacks it")
        numbers.setdefault(name, set()).add(str(index))
    for name, index in label2id.items():
        if str(index) not in numbers.get(name, ()):
            raise ValueError(f"label2id says {name!r} is class {index!r}, id2label does not")


def softmax(values: np.ndarray) -> np.ndarray:
    """Over the last axis; what is too small for the dtype is 0."""
    with np.errstate(over="ignore", under="ignore"):
        weights = np.exp(values - values.max(axis=-1, keepdims=True))
        return weights / weights.sum(axis=-1, keepdims=True)


def sigmoid(values: np.ndarray) -> np.ndarray:
    """Of each value by itself."""
    with np.errstate(under="ignore"):
        small = np.exp(-np.abs(values))
        return np.where(values >= 0, 1.0, small) / (1.0 + small)
