"""The built-in offline model: no weights, no network, the same answer every time.

`reply` is the model as a pure function. It reads the question (`questions`, `hints`),
plans tool calls (`planning`, with `schema`, `arguments`, `mentions`, `arithmetic`,
`amounts`), and answers from the results (`results`, `markdown`, `weighing`, `ranking`,
`quoting`, `figures`, `answering`), or summarises (`summary`). `provider` offers it to the
service. Everything is bounded and generic: it knows English, and neither tools nor
documents.
"""

from services.models.providers.extractive.provider import ExtractiveProvider

__all__ = ["ExtractiveProvider"]
