"""OUT as other programs read it."""

import json
import os
import subprocess
import sys

import duckdb
import pandas as pd
import pyarrow.dataset
import pytest

from tests.test_results import EMBED, JOB, row, schema
from tpu.opening import open_results


@pytest.fixture(scope="module", params=["classify", "embed"])
def out(request, tmp_path_factory):
    """Six rows in three parts, one of them an error, and what is not for readers in _job."""
    job = JOB if request.param == "classify" else EMBED
    out = tmp_path_factory.mktemp(request.param) / "out"
    with open_results(str(out), job, schema(job), rows_a_part=2) as results:
        for number in range(6):
            results.add(row(number, job=job, error="is empty" if number == 4 else None))
    assert len(list(out.glob("part-*"))) == 3
    return out


def test_pandas(out):
    frame = pd.read_parquet(out).sort_values("row")
    assert frame["row"].tolist() == list(range(6))
    assert frame["path"].tolist() == [f"{number}.mp4" for number in range(6)]
    assert frame["error"].isna().tolist() == [True] * 4 + [False, True]


def test_arrow(out):
    table = pyarrow.dataset.dataset(out).to_table().sort_by("row")
    assert table["row"].to_pylist() == list(range(6))
    answer = "labels" if "labels" in table.column_names else "embedding"
    assert [each is None for each in table[answer].to_pylist()] == [False] * 4 + [True, False]


def test_duckdb(out):
    found = duckdb.sql(f"SELECT row, path, error FROM '{out}/*.parquet' ORDER BY row").fetchall()
    assert found[3] == (3, "3.mp4", None)
    assert found[4] == (4, "4.mp4", "is empty")
    assert len(found) == 6


LOAD = """
import json, sys
from datasets import load_dataset
data = load_dataset("parquet", data_files=sys.argv[1] + "/*.parquet", split="train").sort("row")
print(json.dumps([data["row"][:], data["error"][:]]))
"""


def test_datasets(out, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(out)],
        env=os.environ | {"HF_HOME": str(tmp_path), "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [list(range(6)), [None] * 4 + ["is empty", None]]
