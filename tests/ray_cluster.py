"""`python -m tpu ray` on a cluster of three machines that are processes here, one of them lost.

    python -m tests.ray_cluster MANIFEST OUT OPTIONS...

The head and two others, two cores each; one of the others is killed, its raylet and all workers,
when the first rows are in OUT. Prints JSON: the exit code, and how many rows there were then.
"""

import json
import sys
import threading
import time
from pathlib import Path

from ray.cluster_utils import Cluster

from tpu.__main__ import main as tpu

MEMORY = 150 * 2**20


def main(argv: list[str]) -> int:
    out = Path(argv[1])
    machine = {"num_cpus": 2, "object_store_memory": MEMORY}
    head = {**machine, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    lost, _ = [cluster.add_node(**machine) for _ in range(2)]
    cluster.wait_for_nodes()
    lost_when = []

    def lose_one() -> None:
        # A part is there a moment before the note that counts its rows.
        while not list((out / "_job" / "done").glob("part-*.json")):
            time.sleep(0.02)
        cluster.remove_node(lost, allow_graceful=False)
        assert not lost.any_processes_alive()
        lost_when.append(sum(note["count"] for note in map(json.loads, notes(out))))

    losing = threading.Thread(target=lose_one, daemon=True)
    losing.start()
    code = tpu(["ray", *argv, "--address", cluster.address])
    losing.join()
    cluster.shutdown()
    print(json.dumps({"code": code, "rows_when_lost": lost_when}))
    return 0


def notes(out: Path) -> list[str]:
    return [path.read_text() for path in (out / "_job" / "done").iterdir()]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
