import numpy as np
import pytest

from videomae_jax import scores
from videomae_jax.published import PUBLISHED, published_figures


def test_single_label_by_hand():
    probabilities = np.array(
        [
            [0.50, 0.20, 0.10, 0.08, 0.07, 0.03, 0.02],  # said 0
            [0.10, 0.60, 0.10, 0.08, 0.07, 0.03, 0.02],  # said 1
            [0.03, 0.40, 0.30, 0.08, 0.07, 0.02, 0.10],  # said 1; 5 is last
            [0.20, 0.20, 0.20, 0.20, 0.10, 0.05, 0.05],  # of equals the first, 0
        ]
    )
    found = scores.single_label(probabilities, np.array([0, 2, 5, 3]))
    assert found["top1"] == 1 / 4
    assert found["top5"] == 3 / 4
    wanted = np.zeros((7, 7), int)
    wanted[0, 0] = wanted[2, 1] = wanted[5, 1] = wanted[3, 0] = 1
    assert found["confusion"] == wanted.tolist()
    assert found["per_class"][0] == {"right": 1, "count": 1, "accuracy": 1.0}
    assert found["per_class"][2] == {"right": 0, "count": 1, "accuracy": 0.0}
    assert found["per_class"][1] == {"right": 0, "count": 0, "accuracy": None}


def test_top_5_of_fewer_classes_is_all_of_them():
    found = scores.single_label(np.array([[0.2, 0.8], [0.2, 0.8]]), np.array([0, 0]))
    assert (found["top1"], found["top5"]) == (0.0, 1.0)


def test_wilson_by_its_definition():
    # The shares p for which the observed one is just Z standard deviations away.
    for right, count in ((7, 10), (1, 3), (570, 600), (50, 51)):
        for end in scores.wilson(right, count):
            deviation = np.sqrt(end * (1 - end) / count)
            assert abs(right / count - end) == pytest.approx(scores.Z * deviation, rel=1e-9)
    low, high = scores.wilson(0, 20)
    assert low == 0
    assert 0.1 < high < 0.2
    low, high = scores.wilson(20, 20)
    assert 0.8 < low < 0.9
    assert high == 1


@pytest.mark.parametrize(
    ("values", "present", "wanted"),
    [
        # Found at places 1 and 3 of 4: (1/1 + 2/3) / 2.
        ([0.9, 0.8, 0.7, 0.1], [1, 0, 1, 0], 5 / 6),
        # All equal: as precise as there are many.
        ([0.5, 0.5, 0.5, 0.5], [1, 0, 0, 0], 1 / 4),
        # The first of three equals count with the others: at place 4, 2 are found; 1 at place 1.
        ([0.9, 0.5, 0.5, 0.5], [1, 1, 0, 0], (1 + 2 / 4) / 2),
        ([0.1, 0.2], [1, 1], 1.0),
        ([0.1, 0.2], [0, 0], None),
    ],
)
def test_average_precision_by_hand(values, present, wanted):
    found = scores.average_precision(np.array(values), np.array(present, bool))
    assert found is None if wanted is None else found == pytest.approx(wanted)


def test_the_mean_is_over_classes_that_occur():
    targets = np.array([[1.0, 0, 0], [0, 1, 0], [1, 1, 0]])
    probabilities = np.array([[0.9, 0.3, 0.5], [0.4, 0.6, 0.5], [0.2, 0.5, 0.5]])
    found = scores.multi_label(probabilities, targets)
    assert found["map"] == pytest.approx((5 / 6 + 1) / 2)
    assert [entry["count"] for entry in found["per_class"]] == [2, 2, 0]
    assert found["per_class"][2]["average_precision"] is None


def test_regression_by_hand():
    targets = np.array([[1.0, 5.0], [2.0, 5.0], [6.0, 5.0]])
    outputs = np.array([[1.0, 5.0], [4.0, 4.0], [5.0, 5.0]])
    found = scores.regression(outputs, targets)
    first, second = found["per_output"]
    assert first == {"mse": 5 / 3, "mae": 1.0, "r2": pytest.approx(1 - 5 / 14)}
    assert second == {"mse": 1 / 3, "mae": 1 / 3, "r2": None}
    assert found["mse"] == pytest.approx(1.0)
    assert found["mae"] == pytest.approx(2 / 3)
    assert found["r2"] == first["r2"]


@pytest.mark.parametrize(
    ("source", "num_labels", "wanted"),
    [
        ({"hub": {"id": "MCG-NJU/videomae-small-finetuned-kinetics"}}, 400, (0.79, 0.938)),
        ({"hub": {"id": "MCG-NJU/videomae-base-finetuned-kinetics"}}, 400, (0.815, 0.951)),
        ({"hub": {"id": "MCG-NJU/videomae-base-short-finetuned-kinetics"}}, 400, (0.8, 0.944)),
        ({"hub": None, "path": "/x/videomae-base-finetuned-ssv2"}, 174, (0.708, 0.924)),
        (
            {"path": "/h/models--MCG-NJU--videomae-large-finetuned-kinetics/snapshots/0a"},
            400,
            (0.852, 0.968),
        ),
        ({"path": "/x/vit_s_k710_dl_from_giant.pth"}, 710, (0.776, None)),
        ({"path": "C:\\x\\vit_b_k710_dl_from_giant.pth"}, 400, (0.866, None)),
        # Another head; another model of a similar name; nothing known.
        ({"hub": {"id": "MCG-NJU/videomae-small-finetuned-kinetics"}}, 10, None),
        ({"hub": {"id": "me/videomae-base-finetuned-kinetics-finetuned-cats"}}, 400, None),
        ({"hub": {"id": "me/own"}, "path": "/x/videomae-base-finetuned-ssv2"}, 174, None),
        ({}, 400, None),
        (None, 400, None),
    ],
)
def test_a_checkpoint_is_known_by_its_source(source, num_labels, wanted):
    found = published_figures({"source": source}, num_labels)
    assert (found and (found.top1, found.top5)) == wanted


def test_published_figures_are_shares():
    for entries in PUBLISHED.values():
        for figures in entries.values():
            assert 0.5 < figures.top1 < (figures.top5 or 1) < 1.01
            assert figures.views in ("5x3", "2x3")
            size = figures.name.removeprefix("VideoMAE ").removeprefix("V2 ")[0]
            assert figures.num_heads == {"S": 6, "B": 12, "L": 16, "H": 16}[size]
