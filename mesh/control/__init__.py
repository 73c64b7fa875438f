"""Who is alive, where it is, and who may ask it.

`leases` is the port of leases that show who is alive, `nats_leases` its back end.
`health_checks` asks every instance whether it serves; `xds` tells gRPC's clients where to go.
"""
