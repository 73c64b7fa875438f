"""The pure core of the scheduler: what queues and schedules are, what may happen to them,
which task is next, when a schedule ticks.

No clock, no randomness, no I/O: time, ids and random numbers come in as arguments.
"""
