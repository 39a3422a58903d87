import json
import subprocess
import sys

from tests.batch_job import ROOT, job, rows, write_clips, write_model


def test_memory_does_not_grow_with_the_number_of_videos(tmp_path):
    paths = write_clips(tmp_path / "clips", 20)
    lines = [f"clips/{paths[number % 20].name}\n" for number in range(10_000)]
    (tmp_path / "list.txt").write_text("".join(lines))
    options = ("--model", write_model(tmp_path), "--batch", 16, "--flush-seconds", 3)
    arguments = job(tmp_path / "list.txt", tmp_path / "out", *options)
    done = subprocess.run(
        [sys.executable, "-m", "tests.batch_memory", "1000", "10000", "--", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    seen = json.loads(done.stdout)
    print(seen, done.stderr)
    for who in ("job", "workers"):
        assert seen["10000"][who] < 1.1 * seen["1000"][who]
    assert len(rows(tmp_path / "out")) == 10_000
