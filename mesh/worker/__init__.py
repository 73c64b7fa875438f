"""A worker in a few lines.

```python
from mesh.worker import Worker

worker = Worker("tenants/default/queues/default", address="127.0.0.1:50051", slots=4)

@worker.task("resize")
def resize(task):
    return make_smaller(task.payload)

worker.run()
```

A handler gets a `WorkerTask` and returns bytes, text or None. An `async def` runs in the
worker's event loop, a plain `def` in a process of its own, so that it may compute; one that
is cancelled is killed. What it
raises fails the attempt; `TaskFailure` says with which code, and so whether it is tried
again.
"""

from mesh.worker.task import TaskFailure, WorkerTask
from mesh.worker.worker import Worker

__all__ = ["TaskFailure", "Worker", "WorkerTask"]
