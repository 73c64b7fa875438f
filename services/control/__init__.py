"""What a deployment is made of, and where its calls go.

Owns: the splits, `control._system.services.{service}` and `control.{tenant}.agents.{agent}`.
The registry is every process's own view.
Serves: `weft.control.v1.RegistryService` (ListInstances), `weft.control.v1.TrafficService`.
`weft.control.v1.MeshService` is its contract, too: clients of the mesh find it here, and every
process answers it itself (`mesh/runtime/operations.py`).
Emits: SplitSet, SplitPromoted, SplitRolledBack; `InstanceDrained` and `InstanceUndrained` on
`instances.<tenant>.<instance>`, for the audit: instances say what they are with each renewal of
their lease.
Consumes: those of splits, in memory; what instances say of their calls and turns; calls agents,
for their revisions, and other instances of its own.
"""
