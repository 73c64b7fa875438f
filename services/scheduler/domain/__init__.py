"""The pure core of the scheduler: what a queue is, what may happen to it, which task is next.

No clock, no randomness, no I/O: time, ids and random numbers come in as arguments.
"""
