import json
import os
import random
import subprocess
import sys

import pytest

from tests.batch_job import (
    ROOT,
    assert_same,
    corrupt,
    last_line,
    rows,
    run,
    write_clips,
    write_model,
)
from tpu.job import JobError
from tpu.ray_job import Cluster, plan_cluster

HOST = {"CPU": 24.0, "memory": 1e9}


@pytest.mark.parametrize(
    ("nodes", "options", "wanted"),
    [
        ([HOST], {}, Cluster(kind="CPU", devices=1, predictors=1, decoders=23)),
        ([HOST] * 3, {}, Cluster(kind="CPU", devices=1, predictors=3, decoders=69)),
        (
            [HOST | {"TPU": 4.0}] * 2 + [HOST],
            {},
            Cluster(kind="TPU", devices=4, predictors=2, decoders=70),
        ),
        (
            [HOST | {"GPU": 8.0}, HOST],
            {},
            Cluster(kind="GPU", devices=8, predictors=1, decoders=47),
        ),
        (
            [HOST | {"GPU": 8.0}, HOST | {"GPU": 2.0}],
            {"accelerator": "GPU:4"},
            Cluster(kind="GPU", devices=4, predictors=1, decoders=47),
        ),
        (
            [HOST | {"GPU": 8.0}],
            {"accelerator": "CPU", "predictors": 2, "decoders": 5},
            Cluster(kind="CPU", devices=1, predictors=2, decoders=5),
        ),
    ],
)
def test_who_does_what(nodes, options, wanted):
    assert plan_cluster(nodes, **options) == wanted


@pytest.mark.parametrize(
    ("nodes", "options", "words"),
    [
        ([HOST], {"accelerator": "TPU"}, "no machine of the cluster has TPU"),
        ([HOST | {"TPU": 4.0}], {"accelerator": "TPU:8"}, "has 8 of TPU"),
        ([HOST], {"accelerator": "NPU"}, "--accelerator is TPU, GPU or CPU, as in TPU:4"),
        ([HOST], {"accelerator": "TPU:x"}, "as in TPU:4, got 'TPU:x'"),
        ([{"CPU": 1.0}], {}, "has 1 CPUs, 1 go to the models and none is left"),
    ],
)
def test_clusters_that_can_not_do_it(nodes, options, words):
    with pytest.raises(JobError) as error:
        plan_cluster(nodes, **options)
    assert words in str(error.value)


def test_three_machines_one_of_which_is_lost(tmp_path):
    paths = write_clips(tmp_path / "clips", 300)
    draw = random.Random(0)
    bad = draw.sample(range(300), 24)
    for kind, number in enumerate(bad):
        corrupt(paths[number], kind % 8, draw)
    lines = [f"clips/{path.name}\n" for path in paths]
    (tmp_path / "list.txt").write_text("".join(lines))
    model = write_model(tmp_path)
    assert run(tmp_path / "list.txt", tmp_path / "local", "--model", model, "--batch", 4) == 0
    options = ["--model", model, "--batch", 4, "--dtype", "float32", "--flush-seconds", 0.1]
    arguments = [tmp_path / "list.txt", tmp_path / "out", *options]
    done = subprocess.run(
        [sys.executable, "-m", "tests.ray_cluster", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["code"] == 0
    # While there was something left to lose.
    assert 0 < told["rows_when_lost"][0] < 250
    found = rows(tmp_path / "out")
    assert_same(found, rows(tmp_path / "local"))
    assert found.index[found["error"].notna()].tolist() == sorted(bad)
    assert last_line(done.stderr)["done"] == 300
    # The other command finds everything done.
    before = len(list((tmp_path / "out").glob("part-*")))
    assert before > 1
    assert run(tmp_path / "list.txt", tmp_path / "out", "--model", model, "--batch", 4) == 0
    assert len(list((tmp_path / "out").glob("part-*"))) == before
