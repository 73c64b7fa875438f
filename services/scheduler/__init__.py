"""The scheduler: tasks with priorities, deadlines and workers.

Owns: a tenant's queues, each with its tasks that aren't final, its dead letters and its batches.
Serves: `weft.scheduler.v1` (TaskService, BatchService, QueueService, DeadLetterService,
WorkerService).
Emits: the facts of `weft.scheduler.v1` on `scheduler.<tenant>.<queue>`.
Consumes: its own facts.
"""
