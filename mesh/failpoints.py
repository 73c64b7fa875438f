"""Named places at which a test lets the process die.

`WEFT_FAILPOINTS` names them, parted by commas, each with the pass at which it fires:
`commit:TurnAccepted:stored@1,tool:calculator:before@2`. Without the variable a pass
costs one comparison. A place that fires ends the process with SIGKILL: nothing is
flushed, no handler runs, as in a crash. A process that runs already is given other
places with `arm`.
"""

import os
import signal


def _parse(text: str) -> dict[str, int]:
    places: dict[str, int] = {}
    for entry in filter(None, text.split(",")):
        name, _, count = entry.partition("@")
        places[name] = int(count or 1)
    return places


_places = _parse(os.environ.get("WEFT_FAILPOINTS", ""))


def arm(text: str) -> None:
    """Names other places, as `WEFT_FAILPOINTS` does; passes are counted from here on."""
    global _places
    _places = _parse(text)


def active() -> bool:
    """Whether any place is named; lets callers skip making a name."""
    return bool(_places)


def failpoint(name: str) -> None:
    """Dies here if this is the pass of `name` that `WEFT_FAILPOINTS` asks for."""
    if not _places or name not in _places:
        return
    _places[name] -= 1
    if _places[name] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
