"""The scheduler: tasks with priorities, deadlines and workers, and schedules that submit some.

Owns: a tenant's queues, each with its tasks that aren't final, its dead letters and its
batches; a tenant's schedules.
Serves: `weft.scheduler.v1` (TaskService, BatchService, QueueService, DeadLetterService,
WorkerService, ScheduleService).
Emits: the facts of `weft.scheduler.v1` on `scheduler.<tenant>.<queue>` and
`schedules.<tenant>.<schedule>`.
Consumes: its own facts.
"""
