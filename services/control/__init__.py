"""What a deployment is made of.

Owns: nothing; the registry is every process's own view.
Serves: `weft.control.v1.RegistryService` (ListInstances).
Emits: no events; instances say what they are with each renewal of their lease.
Consumes: no events; calls no other service.
"""
