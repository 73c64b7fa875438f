"""What a deployment is made of.

Owns: nothing; the registry is every process's own view.
Serves: `weft.control.v1.RegistryService` (ListInstances). `weft.control.v1.MeshService` is
its contract, too: clients of the mesh find it here, and every process answers it itself
(`mesh/runtime/operations.py`).
Emits: `InstanceDrained` and `InstanceUndrained` on `instances.<tenant>.<instance>`, for the
audit; instances say what they are with each renewal of their lease.
Consumes: no events; calls other instances of its own.
"""
