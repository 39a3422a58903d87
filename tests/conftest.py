import os

# The tests are about numbers, not devices; libtpu or a GPU beside the CPU build would change both.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# No test may reach for a model hub: without this a wrong path turns into a slow network error.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# torch starts one thread a core in every pytest worker, which then wait for each other.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import hypothesis
import pytest

# The same examples every time, and no deadline: a compile or a busy machine is no failure.
hypothesis.settings.register_profile("videomae_jax", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("videomae_jax")


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Nothing is kept in the user's cache, nor found there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
