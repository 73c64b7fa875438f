"""What a deployment is made of, and where its calls go.

Owns: the splits, `control._system.services.{service}` and `control.{tenant}.agents.{agent}`.
The registry is every process's own view.
Serves: `weft.control.v1.RegistryService` (ListInstances), `weft.control.v1.TrafficService`.
Emits: SplitSet, SplitPromoted, SplitRolledBack.
Consumes: those, in memory; calls agents, for their revisions.
"""
