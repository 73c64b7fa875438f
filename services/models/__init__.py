"""Models of any provider behind one contract.

Owns: nothing; calls are not stored here.
Serves: `weft.models.v1.ModelService` (ListModels, Generate, StreamGenerate, Embed).
Emits: no events; `agents` records what a model said.
Consumes: no events.

Providers: `builtin/extractive` and `builtin/hashing`, offline and always there, and
`<provider>/<model>` of each endpoint that is configured; `route/<route>` is several of them.
"""
