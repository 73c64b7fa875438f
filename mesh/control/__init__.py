"""Who is alive, where it is, and who may ask it.

`leases` and `registry` are the ports, `nats_leases` and `nats_registry` what is behind them.
`health_checks` asks every instance whether it serves; `xds` tells gRPC's clients where to go.
"""
