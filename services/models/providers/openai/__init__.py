"""Models behind any endpoint that speaks OpenAI's Chat Completions.

`wire` is the protocol as pure functions, `endpoint` speaks HTTP and maps failures,
`provider` retries, bounds the time and keeps the list of models.
"""

from services.models.providers.openai.provider import OpenAIProvider

__all__ = ["OpenAIProvider"]
