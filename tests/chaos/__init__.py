"""Turns under load while processes and servers are killed and stopped at random.

`python -m tests.chaos --rounds N --seed S`; `make chaos ROUNDS=N`. The seed gives the
load and the choice of what is harmed, and when; what is hit there is the machine's own.
"""
