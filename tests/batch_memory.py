"""The batch job in a process of its own, which prints its memory on the way.

    python -m tests.batch_memory 1000 10000 -- run MANIFEST OUT ...

Prints JSON: resident bytes of the job, and of its decode processes, at those numbers of rows.
"""

import json
import sys
from unittest import mock

import psutil

from tpu.__main__ import main as tpu
from tpu.progress import Progress


def main(argv: list[str]) -> int:
    border = argv.index("--")
    wanted, seen = {int(count) for count in argv[:border]}, {}
    add = Progress.add

    def watched(self, *, failed):
        add(self, failed=failed)
        if self.done in wanted:
            job = psutil.Process()
            workers = sum(child.memory_info().rss for child in job.children())
            seen[self.done] = {"job": job.memory_info().rss, "workers": workers}

    with mock.patch.object(Progress, "add", watched):
        code = tpu(argv[border + 1 :])
    print(json.dumps(seen))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
