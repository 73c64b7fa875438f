"""Results of tools that are given again, for tools that were registered so."""

import re
from collections.abc import Awaitable, Callable, Mapping

import orjson

from mesh.cache.cache import Cache
from mesh.cache.codecs import MessageCodec
from mesh.cache.entries import session_tag
from weft.tools.v1 import tool_service_pb2 as pb
from weft.tools.v1 import tools_pb2

_SESSION = re.compile(r"(tenants/[^/]+/agents/[^/]+/sessions/[^/]+)/")


class _Failed(Exception):
    """A result that isn't kept: the tool failed."""

    def __init__(self, result: pb.InvokeToolResponse) -> None:
        super().__init__("the tool failed")
        self.result = result


class CachedResults:
    """Keeps what tools answered, by the tool's definition and the call's arguments. A failure
    isn't kept; who waited for the same call gets it, too."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._results = cache.of("tools.results", MessageCodec(pb.InvokeToolResponse))

    async def get(
        self,
        tool: tools_pb2.Tool,
        arguments: Mapping[str, object],
        idempotency_key: str,
        run: Callable[[], Awaitable[pb.InvokeToolResponse]],
    ) -> pb.InvokeToolResponse:
        """An earlier result, or that of `run`. What is kept is forgotten with the session that
        `idempotency_key` is of."""

        async def load() -> pb.InvokeToolResponse:
            result = await run()
            if result.is_error:
                raise _Failed(result)
            return result

        # The definition is in the key, since another process may know an older one still.
        written = orjson.dumps(arguments, option=orjson.OPT_SORT_KEYS)
        session = _SESSION.match(idempotency_key)
        tags = [_tag(tool.name), *([session_tag(session[1])] if session else [])]
        try:
            return await self._results.get(
                _tenant(tool.name),
                b" ".join((tool.name.encode(), tool.etag.encode(), written)),
                load,
                ttl_seconds=tool.cache_ttl.ToNanoseconds() / 1e9,
                tags=tags,
            )
        except _Failed as failure:
            return failure.result

    async def forget(self, tool: str) -> None:
        """Forgets the results of the tool of that name. May raise EventStoreUnavailable."""
        await self._cache.invalidate(_tenant(tool), [_tag(tool)])


def _tenant(tool: str) -> str:
    return tool.split("/")[1]


def _tag(tool: str) -> str:
    return f"tool:{tool}"
