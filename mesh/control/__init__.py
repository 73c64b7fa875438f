"""Who is alive: instances, the leases that show it, and what each says of itself.

`leases` and `registry` are the ports, `nats_leases` and `nats_registry` what is behind them.
"""
