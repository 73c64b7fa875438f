"""Summarises a conversation by its most telling sentences."""

import math
import re
from collections import Counter
from collections.abc import Sequence

from services.models.providers.extractive.markdown import sentences
from services.models.providers.extractive.text import terms
from services.models.tokens import tokens_estimate
from weft.models.v1 import models_pb2

MARKER = "Summarise the conversation so far"
"""How the last user message of a request for a summary begins."""

_TOKENS_DEFAULT = 512
_SENTENCES_MAX = 2_000
_MESSAGE_CHARACTERS_MAX = 20_000
_PREFACE = re.compile(r"^Summary of [^\n]{0,80}:\n", re.MULTILINE)
_SPEAKERS = {models_pb2.ROLE_USER: "User", models_pb2.ROLE_ASSISTANT: "Assistant"}


def summarise(
    messages: Sequence[models_pb2.Message], tokens_max: int, instructions: str = ""
) -> str:
    """Sentences of users and assistant, in their order, within `tokens_max` (512 where it is 0).

    A summary of what came still earlier, at the end of `instructions`, is summarised too.

    A sentence counts by the frequency of its terms over the conversation; what people
    asked and what was said last count more.
    """
    budget = tokens_max or _TOKENS_DEFAULT
    lines = [*_earlier(instructions), *_lines(messages)]
    frequency = Counter(term for _, _, text in lines for term in set(terms(text)))
    scored = [
        (_score(text, role, index / max(1, len(lines)), frequency), index)
        for index, (role, _, text) in enumerate(lines)
    ]
    chosen: list[int] = []
    for _, index in sorted(scored, key=lambda one: (-one[0], one[1])):
        cost = tokens_estimate(lines[index][1] + lines[index][2]) + 2
        if cost <= budget:
            budget -= cost
            chosen.append(index)
    return "\n".join(f"{lines[index][1]}: {lines[index][2]}" for index in sorted(chosen))


def _earlier(instructions: str) -> list[tuple[int, str, str]]:
    """The lines of a former summary, each with its speaker again."""
    preface = _PREFACE.search(instructions)
    found = []
    for line in instructions[preface.end() :].splitlines() if preface else ():
        speaker, colon, text = line.partition(": ")
        role = next((role for role, name in _SPEAKERS.items() if name == speaker), None)
        if role is not None and colon:
            found.append((int(role), speaker, text))
        elif line.strip():
            found.append((int(models_pb2.ROLE_UNSPECIFIED), "Earlier", line.strip()))
    return found[:_SENTENCES_MAX]


def _lines(messages: Sequence[models_pb2.Message]) -> list[tuple[int, str, str]]:
    """(role, speaker, sentence) of what was said, each once, the newest kept."""
    found: dict[tuple[str, str], int] = {}
    for message in reversed(messages):
        speaker = _SPEAKERS.get(message.role)
        if speaker is None or message.text.startswith(MARKER):
            continue
        for sentence in reversed(sentences(message.text[:_MESSAGE_CHARACTERS_MAX])):
            if terms(sentence.text) and sentence.text != "Sources:":
                found.setdefault((speaker, sentence.text), message.role)
        if len(found) >= _SENTENCES_MAX:
            break
    return [(role, speaker, text) for (speaker, text), role in reversed(found.items())]


def _score(text: str, role: int, position: float, frequency: Counter[str]) -> float:
    own = set(terms(text))
    telling = sum(1 + math.log(frequency[term]) for term in own) / (1 + math.log(1 + len(own)))
    return telling * (1.3 if role == models_pb2.ROLE_USER else 1.0) * (0.7 + 0.3 * position)
