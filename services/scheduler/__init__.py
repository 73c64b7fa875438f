"""The scheduler: tasks with priorities, deadlines and workers, and schedules that submit some.

Owns: a tenant's queues, each with its tasks that aren't final and its dead letters; a
tenant's schedules.
Serves: `weft.scheduler.v1` (TaskService, QueueService, DeadLetterService, WorkerService,
ScheduleService).
Emits: the facts of `weft.scheduler.v1` on `scheduler.<tenant>.<queue>` and
`schedules.<tenant>.<schedule>`.
Consumes: its own facts.
"""
