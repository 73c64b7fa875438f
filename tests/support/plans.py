"""Plans for the scripted model: what it answers, step by step."""

import json
from collections.abc import Sequence
from typing import Any

TOKENS = 20


def plan(*steps: dict[str, Any]) -> str:
    """A question that the scripted model answers with these steps."""
    return json.dumps({"steps": steps})


def writing(*, seconds: float, calls: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """A step that takes a while: a text in twenty tokens, then the calls."""
    words = "".join(f"word {number:02} " for number in range(TOKENS))
    return {
        "text": words,
        "tokens": TOKENS,
        "delay_seconds": seconds / TOKENS,
        "calls": list(calls),
    }
