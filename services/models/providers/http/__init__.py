"""Models behind HTTP endpoints.

`chat`, `responses` and `messages` are the protocols as pure functions (OpenAI's Chat
Completions and Responses, Anthropic's Messages), `answer` puts an answer together,
`embeddings` is OpenAI's protocol for vectors. `endpoint` speaks HTTP and maps failures;
`breaker` and `limits` say whether a call may go out; `provider` retries, bounds the time and
keeps the list of models.
"""

from services.models.providers.http.provider import HttpProvider

__all__ = ["HttpProvider"]
