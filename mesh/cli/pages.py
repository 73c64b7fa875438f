"""Lists, page by page."""

from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Protocol, TypeVar

import typer

from mesh.cli.connection import Client, UnaryMethod
from mesh.cli.output import note

PAGE_SIZE_MAX = 1000
PAGES_MAX = 10_000
LIMIT = 1000

Limit = Annotated[int, typer.Option("--limit", help="Most entries to list.", min=1, max=1_000_000)]


class PageRequest(Protocol):
    """A request of a List method (AIP-158)."""

    page_size: int
    page_token: str


class PageResponse(Protocol):
    """A response of a List method (AIP-158)."""

    @property
    def next_page_token(self) -> str: ...


Q = TypeVar("Q", bound=PageRequest)
R = TypeVar("R", bound=PageResponse)
T = TypeVar("T")


def fetch(
    client: Client,
    method: UnaryMethod[Q, R],
    request: Q,
    entries: Callable[[R], Iterable[T]],
    limit: int = LIMIT,
) -> list[T]:
    """The entries of all pages, `limit` of them at most; says so where there are more.

    `entries` takes them out of a response; `request` is changed from page to page.
    """
    return list(each(client, method, request, entries, limit))


def each(
    client: Client,
    method: UnaryMethod[Q, R],
    request: Q,
    entries: Callable[[R], Iterable[T]],
    limit: int,
) -> Iterator[T]:
    """What `fetch` returns, one by one as the pages come."""
    count = 0
    for _ in range(PAGES_MAX):
        request.page_size = min(limit - count, PAGE_SIZE_MAX)
        response = client.call(method, request)
        for entry in entries(response):
            count += 1
            yield entry
        request.page_token = response.next_page_token
        if not request.page_token:
            return
        if count >= limit:
            break
    note(f"There are more; --limit shows more than {count}.")
