from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from videomae_jax.labels import Labels, Prediction

K400 = Path(__file__).parents[2] / "shared" / "labels" / "label_map_k400.txt"
ABC = Labels(("archery", "bowling", "chopping wood"))


# --- names


def test_numbered():
    labels = Labels.numbered(3)
    assert labels.names == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert len(labels) == 3
    assert labels[2] == "LABEL_2"
    assert len(Labels.numbered(0)) == 0


@pytest.mark.parametrize(
    ("count", "said"), [(-1, "at least 0"), (2.0, "whole"), (True, "whole"), ("3", "whole")]
)
def test_an_impossible_number_of_labels(count, said):
    with pytest.raises(ValueError, match=f"{said}.*got {count!r}"):
        Labels.from_hf({"num_labels": count})


@pytest.mark.parametrize("names", [("a", 3), ("a", ""), ("a", " "), ("a", None)])
def test_a_name_is_a_word(names):
    with pytest.raises(ValueError, match="label 1 must be a name"):
        Labels.from_list(list(names))


@pytest.mark.parametrize("names", ["abc", {"0": "a"}, None, 3])
def test_from_list_refuses_what_is_no_list(names):
    with pytest.raises(ValueError, match="labels must be a list of names"):
        Labels.from_list(names)


def test_list_and_back():
    assert Labels.from_list(ABC.to_list()) == ABC


# --- Hugging Face


def test_from_hf_orders_by_number():
    mixed = {"2": "c", "0": "a", 1: "b", "10": "k"} | {str(i): f"n{i}" for i in range(3, 10)}
    assert Labels.from_hf({"id2label": mixed}).names == (
        *("a", "b", "c"),
        *(f"n{i}" for i in range(3, 10)),
        "k",
    )


def test_from_hf_without_names():
    assert Labels.from_hf({}) == Labels.numbered(2)
    assert Labels.from_hf({"num_labels": 5, "id2label": None}) == Labels.numbered(5)
    assert Labels.from_hf({"id2label": {}, "label2id": {}}) == Labels(())


def test_from_hf_with_names_that_repeat():
    names = {"0": "jump", "1": "run", "2": "jump"}
    assert Labels.from_hf({"id2label": names, "label2id": {"jump": 2, "run": "1"}}).names == (
        "jump",
        "run",
        "jump",
    )


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"id2label": {"0": "a", "2": "c"}}, "has 2 names, but none for class 1"),
        ({"id2label": {"1": "a", "2": "c"}}, "has 2 names, but none for class 0"),
        ({"id2label": {"0": "a", 0: "b"}}, "names class 0 twice"),
        ({"id2label": {"zero": "a"}}, "has 'zero' where a class number should be"),
        ({"id2label": {"-1": "a"}}, "has '-1' where"),
        ({"id2label": {True: "a"}}, "has True where"),
        ({"id2label": ["a"]}, "id2label must map"),
        ({"id2label": {"0": 7}}, "label 0 must be a name, got 7"),
        ({"id2label": {"0": "a"}, "num_labels": 2}, "num_labels 2 contradicts id2label of 1"),
        ({"id2label": {"0": "a"}, "label2id": {"a": 1}}, "label2id says 'a' is class 1"),
        ({"id2label": {"0": "a"}, "label2id": {"a": 0, "b": 1}}, "label2id says 'b' is class 1"),
        ({"id2label": {"0": "a"}, "label2id": {}}, "class 0 is 'a', label2id lacks it"),
        ({"id2label": {"0": "a"}, "label2id": ["a"]}, "label2id must map"),
        ({"label2id": {"a": 0, "b": 1}}, "class 0 is 'LABEL_0', label2id lacks it"),
    ],
)
def test_from_hf_refuses(config, said):
    with pytest.raises(ValueError, match=said):
        Labels.from_hf(config)


# --- files


def test_read_keeps_names_as_they_are(tmp_path):
    path = tmp_path / "labels.txt"
    names = ('"quoted"', "a, b; c", "d'être", "跳舞", "one\u2028name", "tab\tinside", "#hash")
    for text in ("\n".join(names), "\n".join(names) + "\n\n \n", "\r\n".join(names) + "\r\n"):
        for encoding in ("utf-8", "utf-8-sig"):
            path.write_bytes(text.encode(encoding))
            assert Labels.read(path).names == names


def test_read_drops_space_around_names(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("  air drumming \n\tbowling\n")
    assert Labels.read(str(path)).names == ("air drumming", "bowling")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a\n\nb\n", "line 2: blank"),
        (b"\na\n", "line 1: blank"),
        (b"", "no labels"),
        (b" \r\n\n", "no labels"),
        (b"a\ncaf\xe9\n", "byte 5 is not UTF-8"),
        (b"\xff\xfea\x00\n\x00", "byte 0 is not UTF-8"),
    ],
)
def test_read_refuses_in_one_line_that_names_the_file(tmp_path, content, said):
    path = tmp_path / "labels.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said) as caught:
        Labels.read(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "missing.txt"])
def test_read_refuses_a_directory_and_a_missing_file(tmp_path, name):
    with pytest.raises(ValueError, match="wanted a text file, one label a line") as caught:
        Labels.read(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path))


@pytest.mark.skipif(not K400.is_file(), reason=f"no label list at {K400}")
def test_read_kinetics():
    labels = Labels.read(K400)
    assert len(labels) == 400
    assert (labels[0], labels[5], labels[399]) == ("abseiling", "archery", "zumba")


# --- ranking


def test_rank_and_top_k():
    logits = np.log([0.2, 0.7, 0.1])
    ranked = ABC.rank(logits, 2)
    assert ranked == [
        Prediction(1, "bowling", pytest.approx(0.7, rel=1e-14)),
        Prediction(0, "archery", pytest.approx(0.2, rel=1e-14)),
    ]
    assert ABC.top_k(logits, 2) == [(found.label, found.probability) for found in ranked]
    assert all(type(found.index) is int for found in ranked)
    assert all(type(found.probability) is float for found in ranked)


def test_print_reads_well():
    assert str(ABC.top_k(np.log([0.2, 0.7, 0.1]))) == (
        "0.7000  bowling\n0.2000  archery\n0.1000  chopping wood"
    )


@pytest.mark.parametrize("k", [3, 4, np.int64(99)])
def test_k_is_capped(k):
    assert len(ABC.top_k([1, 2, 3], k)) == 3


@pytest.mark.parametrize("k", [0, -1, True, np.int64(0)])
def test_k_is_checked(k):
    with pytest.raises(ValueError, match="k must be a whole number of at least 1"):
        ABC.rank([1, 2, 3], k)


@pytest.mark.parametrize(
    "logits",
    [
        jnp.array([1.0, 3.0, 2.0]),
        jnp.array([1.0, 3.0, 2.0], jnp.bfloat16),
        np.array([1, 3, 2], np.float16),
        np.array([1, 3, 2]),
        [1.0, 3.0, 2.0],
    ],
)
def test_kinds_of_arrays(logits):
    ranked = ABC.rank(logits)
    assert [found.index for found in ranked] == [1, 2, 0]
    wanted = np.exp([0.0, -1.0, -2.0]) / np.exp([0.0, -1.0, -2.0]).sum()
    np.testing.assert_allclose([found.probability for found in ranked], wanted, rtol=1e-14)


def test_equal_logits_go_by_class_number():
    assert [found.index for found in Labels.numbered(6).rank([0, 1, 0, 1, 1, 0], 5)] == [
        *(1, 3, 4),
        *(0, 2),
    ]


def test_multi_label_asks_each_class():
    ranked = ABC.rank([0.0, 800.0, -800.0], multi_label=True)
    assert [found.probability for found in ranked] == [1.0, 0.5, 0.0]
    assert ABC.rank([-2.0, 0, 2], 1, multi_label=True)[0].probability == pytest.approx(
        float(jax.nn.sigmoid(2.0)), rel=1e-6
    )


@pytest.mark.parametrize(
    ("logits", "said"),
    [
        (np.zeros((1, 3)), r"\[num_labels\] = \[3\], got \[1, 3\]; pass one clip's, such as"),
        (np.zeros(4), r"= \[3\], got \[4\]"),
        (np.float32(1), r"= \[3\], got \[\]"),
        ([1.0, np.nan, 2.0], "finite, got nan for class 1"),
        ([1.0, 2.0, -np.inf], "finite, got -inf for class 2"),
        (["a", "b", "c"], "real numbers"),
        ([None, {}, 1], "real numbers"),
    ],
)
def test_wrong_logits_are_refused(logits, said):
    with pytest.raises(ValueError, match=said):
        ABC.rank(logits)


def test_no_labels_rank_nothing():
    with pytest.raises(ValueError, match=r"= \[0\]"):
        Labels(()).rank([])


FINITE = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(FINITE, min_size=1, max_size=9), st.integers(1, 12), st.booleans())
def test_any_finite_logits_rank(logits, k, multi_label):
    ranked = Labels.numbered(len(logits)).rank(logits, k, multi_label=multi_label)
    assert len(ranked) == min(k, len(logits))
    probabilities = [found.probability for found in ranked]
    assert probabilities == sorted(probabilities, reverse=True)
    assert all(0.0 <= probability <= 1.0 for probability in probabilities)
    if not multi_label and k >= len(logits):
        assert sum(probabilities) == pytest.approx(1.0, abs=1e-12)


def test_probabilities_are_ranked_as_logits_are():
    labels = Labels(("a", "b", "c"))
    found = labels.rank_probabilities([0.2, 0.5, 0.3], 2)
    assert found == [Prediction(1, "b", 0.5), Prediction(2, "c", 0.3)]
    assert [each.label for each in labels.rank_probabilities([0.4, 0.2, 0.4])] == ["a", "c", "b"]
    for bad, words in (([0.5, 0.5], "num_labels"), ([0.5, float("nan"), 0.5], "finite")):
        with pytest.raises(ValueError, match=words):
            labels.rank_probabilities(bad)
    with pytest.raises(ValueError, match="k must be"):
        labels.rank_probabilities([0.2, 0.5, 0.3], 0)
