"""The cache that all services of a process share: what was costly to make is kept in memory,
in Redis and on this process's disk.

Only what can be made again goes in here. Whatever fails below memory costs a hit, never a call.
"""
