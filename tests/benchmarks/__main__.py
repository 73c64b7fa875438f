"""Measures Weft: `python -m tests.benchmarks [ONLY] [--list]`, as `make bench` does.

ONLY is part of the names of the benchmarks to run. The results are printed as a table and
written to `.bench/results.json`. Exits 0 whether or not goals are met: the figures depend
on the machine.
"""

import argparse
import time
from collections.abc import Awaitable, Callable

import uvloop

from mesh.telemetry.logs import configure_logs
from tests.benchmarks import (
    append,
    authenticate,
    blobs,
    budgets,
    cache,
    edge,
    functions,
    hops,
    load,
    memory,
    mesh,
    models,
    replicas,
    scheduler,
    task_poison,
    task_rebuild,
    task_tenants,
    tools,
    turn,
    vectors,
)
from tests.benchmarks.results import RESULTS_FILE, Result, machine, show, write
from tests.support.config_home import config_home

BENCHMARKS: dict[str, Callable[[], Awaitable[list[Result]]]] = {
    "turn": turn.run,
    "scheduler": scheduler.run,
    "task-rebuild": task_rebuild.run,
    "task-poison": task_poison.run,
    "task-tenants": task_tenants.run,
    "authenticate": authenticate.run,
    "budgets": budgets.run,
    "cache": cache.run,
    "edge": edge.run,
    "hops": hops.run,
    "store-append": append.run,
    "store-load": load.run,
    "blobs": blobs.run,
    "functions": functions.run,
    "tools": tools.run,
    "models": models.run,
    "memory": memory.run,
    "mesh": mesh.run,
    "replicas": replicas.run,
    "vectors": vectors.run,
}


async def measured(names: list[str]) -> list[Result]:
    """The results of the benchmarks of these names."""
    results = []
    for name in names:
        started = time.monotonic()
        results += await BENCHMARKS[name]()
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
    return results


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("only", nargs="?", default="", help="part of the names to run")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    arguments = parser.parse_args()
    names = [name for name in BENCHMARKS if arguments.only in name]
    if not names:
        parser.error(f"no benchmark has {arguments.only!r} in its name: {', '.join(BENCHMARKS)}")
    if arguments.list:
        print("\n".join(names))
        return
    configure_logs("warning")
    noted = machine()
    with config_home():
        results = uvloop.run(measured(names))
    show(results, noted)
    write(results, noted)
    print(f"written to {RESULTS_FILE}")


if __name__ == "__main__":
    main()
