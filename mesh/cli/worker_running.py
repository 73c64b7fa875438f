"""Running a worker until a signal."""

import asyncio
import multiprocessing
import os
import signal
from functools import partial

import grpc

from mesh.cli.access import refuse_left_behind
from mesh.cli.connection import Client
from mesh.cli.failures import ExitCode, ServerLeft, usage_error
from mesh.cli.names import short_name
from mesh.cli.output import note
from mesh.errors import Unavailable
from mesh.worker import Worker

SIGNALS = (signal.SIGINT, signal.SIGTERM)
POLL_SECONDS = 0.1


def work(client: Client, worker: Worker) -> None:
    """Runs the worker until SIGINT or SIGTERM, and says on stderr when it is attached.

    CommandFailed where the server refuses it, and where --timeout ended it.
    """
    # The worker has a connection of its own.
    client.reconnect()
    worker.locate = partial(_locate, client)
    try:
        asyncio.run(_until_signal(client, worker))
    except grpc.RpcError as error:
        raise client.failure(error) from error
    except ValueError as error:
        raise usage_error(str(error)) from error
    client.remaining_seconds(1)


def _locate(client: Client) -> tuple[str, str]:
    """Where the server is by now, and the key that may be sent to it. Unavailable where the
    one has ended that left its address, and none is there in its place yet."""
    client.reconnect()
    try:
        refuse_left_behind(client.address)
    except ServerLeft as left:
        raise Unavailable(left.message) from left
    credential = client.sendable_credential
    return client.address.target, credential.secret if credential is not None else ""


async def _until_signal(client: Client, worker: Worker) -> None:
    loop = asyncio.get_running_loop()

    def drain() -> None:
        if signal.getsignal(signal.SIGINT) is _leave:
            # Ctrl-C reaches processes that were forked as well, and their signals come here.
            return
        for number in SIGNALS:
            loop.remove_signal_handler(number)
            # Not by the loop, for the same reason: one Ctrl-C must not count twice.
            signal.signal(number, _leave)
        note("Draining: it ends when what it runs is done; once more ends it at once.")
        worker.stop()

    for number in SIGNALS:
        loop.add_signal_handler(number, drain)
    if client.timeout_seconds is not None:
        loop.call_later(client.remaining_seconds(1), worker.stop)
    telling = asyncio.create_task(_tell(worker))
    try:
        await worker.work()
    finally:
        telling.cancel()


def _leave(number: int, frame: object) -> None:
    for process in multiprocessing.active_children():
        process.kill()
    os._exit(ExitCode.INTERRUPTED)


async def _tell(worker: Worker) -> None:
    """Says each time that the worker is attached."""
    told = False
    own = short_name(worker.queue)
    queue = f"{worker.queue} of all tenants" if worker.all_tenants else own
    while True:
        if worker.attached and not told:
            note(
                f"Worker {worker.worker_id} is attached to {worker.address}: "
                f"queue {queue}, {worker.slots} slots."
            )
        told = worker.attached
        await asyncio.sleep(POLL_SECONDS)
