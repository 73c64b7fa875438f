"""Models of any provider behind one contract.

Owns: nothing; calls are not stored here.
Serves: `weft.models.v1.ModelService` (ListModels, Generate, StreamGenerate).
Emits: no events; `agents` records what a model said.
Consumes: no events.

Providers: `builtin/extractive`, offline and always there, and `openai/<model>` where an
OpenAI-compatible endpoint is configured.
"""
