"""A process that holds a lease and is in the registry, to be killed or stopped by a test.

    python -m tests.support.lease_holder URL SEED_FILE INSTANCE

Prints a line once it holds the lease; answers each line on its standard input with
`held` or `lost`; gives the lease back and ends when that input ends.
"""

import asyncio
import sys
from pathlib import Path

from mesh.control.nats_leases import NatsLeases
from mesh.control.nats_registry import NatsRegistry
from mesh.events.jetstream.connection import Login, connect
from tests.support.nats import UNBOUND
from weft.control.v1.instances_pb2 import Instance, InstanceLoad


async def main(url: str, seed_file: Path, instance: str) -> None:
    connection = await connect(url, name=instance, login=Login(seed_file, UNBOUND.inbox))
    leases = NatsLeases(connection, instance)
    await leases.start()
    own = Instance(name=f"instances/{instance}", services=["scheduler"])
    registry = NatsRegistry(connection, leases, own, InstanceLoad)
    await registry.start()
    await registry.register("127.0.0.1:1")
    print("held", flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        print("held" if leases.held() else "lost", flush=True)
    await leases.stop()
    await connection.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
