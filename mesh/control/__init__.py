"""Who is alive: instances, and the leases that show it.

`leases` is the port; `nats_leases` and `memory_leases` are its back ends.
"""
