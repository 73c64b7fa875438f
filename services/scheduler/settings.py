"""Settings of the scheduler: the table `[scheduler]`, variables `WEFT_SCHEDULER_*`."""

from typing import ClassVar

from pydantic import Field

from mesh.settings import Section


class SchedulerSettings(Section):
    """Bounds of queues, workers and schedules."""

    area: ClassVar[str] = "scheduler"

    lease_seconds: float = Field(default=5, ge=0.2, le=3600)
    """How long a worker's tasks stay its own after its last heartbeat."""
    heartbeat_seconds: float = Field(default=1, ge=0.05, le=600)
    """How often a worker is asked to send one."""
    cancel_grace_seconds: float = Field(default=10, ge=0, le=3600)
    """How long a worker may take to end a task that is cancelled."""
    hello_seconds: float = Field(default=10, gt=0, le=60)
    """How long a worker may take to say who it is."""
    stalled_queued_seconds: float = Field(default=600, ge=0.1)
    """How long a task may wait for a worker before it is said to have stalled."""
    stalled_running_seconds: float = Field(default=120, ge=0.1)
    """How long a worker may say nothing new of a task, where its estimated cost isn't
    more."""
    worker_entries_per_second_max: float = Field(default=10_000, ge=1)
    """How many entries of a worker's messages are read in a second: each report and each
    task of a heartbeat is one. What comes faster waits."""
    payloads_bytes_max: int = Field(default=1 << 30, ge=1 << 18)
    """Most bytes of payloads that an instance holds, of all queues together."""
    workers_max: int = Field(default=4_096, ge=1)
    """Most workers of an instance."""
    queues_max: int = Field(default=1_000, ge=1)
    """Most queues of a tenant."""
    schedules_max: int = Field(default=1_000, ge=1)
    """Most schedules of a tenant."""
    tick_grace_seconds: float = Field(default=5, ge=0.5, le=60)
    """How late a schedule's tick may be found due and not count as missed."""
    kept_days: float = Field(default=30, gt=0)
    """How long tasks that are final are listed."""
