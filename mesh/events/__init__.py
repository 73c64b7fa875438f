"""The event store: commits, snapshots, watching, projections.

`store` is the port and its types; `memory` and `jetstream` are its back ends;
`aggregate` loads what events fold into; `projection` keeps read models.
"""
