"""A worker in a process of its own:
`python -m tests.support.task_worker QUEUE ADDRESS_FILE RAN_FILE`.

It follows a scheduler that comes back on another port: the file tells where it is. Its
key is in WEFT_API_KEY. It answers `echo` with the payload after a moment; `moody` fails
half of its attempts; `poison` kills the process. What it begins it notes in RAN_FILE.
"""

import asyncio
import os
import random
import sys
from pathlib import Path

from mesh.worker import TaskFailure, Worker, WorkerTask
from tests.support.processes import end_with_parent

LOOK_SECONDS = 0.05


async def main(queue: str, address_file: Path, ran_file: Path) -> None:
    """Works until it is killed."""
    worker = Worker(queue, slots=8)
    # One write per line, so that those of several processes don't mix.
    ran = os.open(ran_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(task: WorkerTask) -> None:
        os.write(ran, f"{task.name} {task.attempt}\n".encode())

    @worker.task("echo")
    async def echo(task: WorkerTask) -> bytes:
        note(task)
        await asyncio.sleep(0.01)
        return task.payload

    @worker.task("moody")
    async def moody(task: WorkerTask) -> bytes:
        note(task)
        if random.random() < 0.5:
            raise TaskFailure("not today")
        return task.payload

    @worker.task("poison")
    async def poison(task: WorkerTask) -> None:
        note(task)
        os._exit(1)

    async def look() -> None:
        while True:
            worker.address = await asyncio.to_thread(address_file.read_text)
            await asyncio.sleep(LOOK_SECONDS)

    worker.address = await asyncio.to_thread(address_file.read_text)
    looking = asyncio.create_task(look())
    await worker.work()
    looking.cancel()


if __name__ == "__main__":
    end_with_parent()
    asyncio.run(main(sys.argv[1], *map(Path, sys.argv[2:])))
