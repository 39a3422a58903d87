import contextlib
import json
import socket
import subprocess
import sys
import time

import fsspec
import pytest

from tpu import lock
from tpu.job import JobError
from tpu.lock import LostLock, writer_lock
from tpu.shards import Shard

HOLD = """
import fsspec, sys
from tpu.lock import writer_lock
from tpu.shards import Shard
with writer_lock(fsspec.filesystem("file"), sys.argv[1], Shard.parse(sys.argv[2])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def held_elsewhere(folder, shard):
    """By another process; yields it."""
    command = [sys.executable, "-c", HOLD, str(folder), shard]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.parametrize(
    ("theirs", "mine"), [("0/1", "0/1"), ("1/2", "1/2"), ("0/1", "1/3"), ("1/2", "3/4")]
)
def test_the_second_run_is_refused_until_the_first_is_gone(tmp_path, theirs, mine):
    local = fsspec.filesystem("file")
    with held_elsewhere(tmp_path, theirs) as process:
        with pytest.raises(JobError) as error, writer_lock(local, str(tmp_path), Shard.parse(mine)):
            pass
        assert f"process {process.pid} on {socket.gethostname()}, since " in str(error.value)
        assert "wait for it, or end it first" in str(error.value)
        process.kill()
        process.wait()
        with writer_lock(local, str(tmp_path), Shard.parse(mine)):
            pass


def test_shards_without_common_rows_write_at_the_same_time(tmp_path):
    local = fsspec.filesystem("file")
    with held_elsewhere(tmp_path, "1/2"), writer_lock(local, str(tmp_path), Shard(0, 2)) as held:
        held.check()


def test_a_lock_of_old_is_no_hindrance(tmp_path):
    local = fsspec.filesystem("file")
    for _ in range(2):
        with writer_lock(local, str(tmp_path), Shard(0, 1)):
            pass


@pytest.fixture
def bucket():
    memory = fsspec.filesystem("memory")
    memory.makedirs("/bucket/_job", exist_ok=True)
    yield memory
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


LEASE = "/bucket/_job/lock-0-of-1.json"


def lease(bucket, **said):
    known = {"host": "elsewhere", "process": 7, "since": "noon", "token": "t", "seen": time.time()}
    bucket.pipe_file(LEASE, json.dumps(known | said).encode())


@pytest.mark.parametrize("mine", [Shard(0, 1), Shard(1, 3)])
def test_in_a_bucket_a_living_writer_is_heeded(bucket, monkeypatch, mine):
    lease(bucket)
    # It gives a sign of life while this run looks.
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: lease(bucket))
    with pytest.raises(JobError, match=r"process 7 on elsewhere, since noon.*; wait for"):
        writer_lock(bucket, "/bucket/_job", mine).__enter__()
    assert json.loads(bucket.cat_file(LEASE))["token"] == "t"


def test_in_a_bucket_a_writer_without_a_sign_of_life_is_followed(bucket, monkeypatch, caplog):
    lease(bucket)
    monkeypatch.setattr(lock, "GONE_AFTER", 0.3)
    with writer_lock(bucket, "/bucket/_job", Shard(0, 1)):
        assert json.loads(bucket.cat_file(LEASE))["host"] == socket.gethostname()
    assert "waiting to see whether another run still writes" in caplog.text


def test_in_a_bucket_of_two_that_begin_together_one_gives_up(bucket, monkeypatch):
    renew = lock._renew

    def together(*arguments):
        renew(*arguments)
        bucket.pipe_file(
            "/bucket/_job/lock-1-of-3.json",
            bucket.cat_file(LEASE).replace(b'token": "', b'token": "x'),
        )

    monkeypatch.setattr(lock, "_renew", together)
    with pytest.raises(JobError, match="another run writes"):
        writer_lock(bucket, "/bucket/_job", Shard(0, 1)).__enter__()
    assert not bucket.exists(LEASE)


@pytest.mark.parametrize(
    "gone",
    [
        {"seen": time.time() - 1000},
        {"host": socket.gethostname(), "process": 2**22 + 1},
    ],
)
def test_in_a_bucket_a_writer_that_is_gone_is_followed(bucket, gone):
    lease(bucket, **gone)
    with writer_lock(bucket, "/bucket/_job", Shard(0, 1)):
        assert json.loads(bucket.cat_file(LEASE))["host"] == socket.gethostname()
    assert not bucket.exists(LEASE)


def test_in_a_bucket_a_writer_notices_that_it_was_followed(bucket, monkeypatch):
    monkeypatch.setattr(lock, "RENEWED_EVERY", 0.01)
    with writer_lock(bucket, "/bucket/_job", Shard(0, 1)) as held:
        held.check()
        lease(bucket, token="another")
        assert held.lost.wait(10)
        with pytest.raises(LostLock, match="another run has taken over"):
            held.check()
    assert json.loads(bucket.cat_file(LEASE))["token"] == "another"


def test_in_a_bucket_the_lease_is_renewed(bucket, monkeypatch):
    monkeypatch.setattr(lock, "RENEWED_EVERY", 0.01)
    with writer_lock(bucket, "/bucket/_job", Shard(0, 1)):
        first = json.loads(bucket.cat_file(LEASE))["seen"]
        while json.loads(bucket.cat_file(LEASE))["seen"] == first:
            time.sleep(0.01)


@pytest.mark.parametrize("followed", ["", "and at work", "and done"])
def test_in_a_bucket_a_writer_that_was_stopped_for_long_looks_first(bucket, followed):
    with writer_lock(bucket, "/bucket/_job", Shard(0, 1)) as held:
        # Its other thread has had no time yet.
        held.until = time.monotonic() - 1
        first = json.loads(bucket.cat_file(LEASE))["seen"]
        if followed:
            if followed == "and done":
                bucket.rm_file(LEASE)
            else:
                lease(bucket, token="another")
            with pytest.raises(LostLock, match="another run has taken over"):
                held.check()
            return
        held.check()
        assert json.loads(bucket.cat_file(LEASE))["seen"] > first
        assert held.until > time.monotonic() + 30


def test_in_a_bucket_that_can_not_be_reached_nothing_is_written(bucket, monkeypatch):
    def unreachable(*arguments):
        raise OSError("no network")

    with writer_lock(bucket, "/bucket/_job", Shard(0, 1)) as held, monkeypatch.context() as patch:
        patch.setattr(lock, "_read", unreachable)
        held.check()
        held.until = time.monotonic() - 1
        with pytest.raises(LostLock):
            held.check()
