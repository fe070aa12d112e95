"""The process that measures one cell: a line of JSON in, a line of JSON out, then it waits to be looked at."""

from __future__ import annotations

import json
import sys

from restkv_local.bench.cell import Cell, measure
from restkv_local.errors import RestKVError


def main() -> None:
    """Measure the cell on stdin."""
    cell = Cell(**json.loads(sys.stdin.readline()))
    reply: dict[str, object]
    try:
        reply = {"result": measure(cell)}
    except RestKVError as error:
        reply = {"error": " ".join(str(error).split())}
    print(json.dumps(reply), flush=True)
    # The parent reads this process's peak memory while it still exists, then closes the pipe.
    sys.stdin.read()


if __name__ == "__main__":
    main()
