"""A worker in a process of its own: `python -m tests.support.task_worker QUEUE ADDRESS_FILE`.

It follows a scheduler that comes back on another port: the file tells where it is. Its
key is in WEFT_API_KEY. It answers `echo` with the payload after a moment; `poison` kills
the process.
"""

import asyncio
import os
import sys
from pathlib import Path

from mesh.worker import Worker, WorkerTask
from tests.support.processes import end_with_parent

LOOK_SECONDS = 0.05


async def main(queue: str, address_file: Path) -> None:
    """Works until it is killed."""
    worker = Worker(queue, slots=8)

    @worker.task("echo")
    async def echo(task: WorkerTask) -> bytes:
        await asyncio.sleep(0.01)
        return task.payload

    @worker.task("poison")
    async def poison(task: WorkerTask) -> None:
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
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
