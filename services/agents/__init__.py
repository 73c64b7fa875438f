"""Agents and their turns.

Owns: agent definitions and their revisions; the running of turns.
Serves: `weft.agents.v1.AgentService`, `weft.agents.v1.TurnService`,
`weft.agents.v1.StalledTurnService`.
Emits: `weft.agents.v1.Agent*` on the agents' streams, and the facts of turns
(`weft.state.v1`) on the sessions' streams.
Consumes: both, for its read model of agents and of open turns.
Says, with the process's lease: how turns ended of agents whose split has a rollback policy.

A request's path: `turns.py` (the RPCs) -> `runner.py` (the loop of one turn) ->
models and tools by their stubs, commits by `mesh.events.aggregate`.
"""
