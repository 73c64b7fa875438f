"""Page tokens (AIP-158): opaque to callers, and good for the list that made them only."""

import base64
import binascii

from mesh.errors import InvalidArgument


def write_page_token(last: str, parent: str) -> str:
    """The token of the page behind the entry `last` of the list under `parent`."""
    return base64.urlsafe_b64encode(f"{parent}\n{last}".encode()).decode()


def read_page_token(token: str, parent: str) -> str:
    """The entry behind which the page begins; empty for the first page.

    Raises InvalidArgument where the token isn't one of the list under `parent`.
    """
    if not token:
        return ""
    try:
        text = base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        text = ""
    found, _, last = text.partition("\n")
    if not last or found != parent:
        raise _refused()
    return last


def read_page_number(token: str, parent: str, number_max: int) -> int | None:
    """As `read_page_token` for a list whose entries have numbers from 1 to `number_max`;
    None for the first page."""
    last = read_page_token(token, parent)
    if not last:
        return None
    # isdigit is true of figures such as ² too, and int takes more than figures.
    number = int(last) if last.isascii() and last.isdigit() else 0
    if not 1 <= number <= number_max:
        raise _refused()
    return number


def _refused() -> InvalidArgument:
    return InvalidArgument.of("page_token", "isn't a next_page_token of this list")
