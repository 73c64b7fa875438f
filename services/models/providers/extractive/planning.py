"""Which tools a question needs, and the next calls of a turn.

The plan is a pure function of the question and the tools: each step of a turn makes it
anew and calls what was not called yet.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from services.models.providers.extractive.amounts import find_amount
from services.models.providers.extractive.arguments import Arguments, fill
from services.models.providers.extractive.arithmetic import (
    Calculation,
    find_calculation,
    without_roots,
)
from services.models.providers.extractive.figures import Figure, candidates, find_figure
from services.models.providers.extractive.questions import Clause, read_clauses
from services.models.providers.extractive.ranking import FITTING_MIN, Ranking
from services.models.providers.extractive.schema import Tool
from services.models.providers.extractive.text import stem, terms, words
from services.models.providers.extractive.transcript import Step, Transcript, made

QUERY_CHARACTERS_MAX = 400

_SHARE_MIN = 0.6
"""Least share of a clause's terms that a tool other than a search must account for, where
a search could be asked instead."""
_SHARE_MIN_WITHOUT_SEARCH = 0.4
_SHARE_MIN_WITHOUT_ARGUMENTS = 0.75
_SEARCHES_MAX = 3
_CALCULATES_ON = re.compile(
    r"\d|\b(?:it|this|that|those|them|(?:the|that) (?:result|number|figure)|twice|double|half of)\b"
    r"|\b(?:plus|minus|times|divided|multiplied|sum|total|add|subtract|multiply|divide)\b",
    re.IGNORECASE,
)
"""What a clause that leans on the one before has to say to be a calculation."""
_POINTER = re.compile(r"\b(?:it|this|that|(?:the|that) (?:result|number|figure))\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class PlannedCall:
    """A call; `arguments` is canonical JSON."""

    tool: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Need:
    """What one clause needs.

    `calls` stand alone; `wider` are searches for when those find nothing that fits; a
    `calculation` with phrases takes its figures out of the results.
    """

    clause: Clause
    calls: tuple[PlannedCall, ...] = ()
    wider: tuple[PlannedCall, ...] = ()
    calculation: Calculation | None = None
    calculator: Tool | None = None

    @property
    def phrases(self) -> tuple[str, ...]:
        """The figures to look up."""
        return self.calculation.phrases if self.calculation else ()


def plan(transcript: Transcript, tools: Sequence[Tool]) -> tuple[Need, ...]:
    """What the question needs, clause by clause."""
    needs: list[Need] = []
    for clause in read_clauses(transcript.question, transcript.previous):
        before = needs[-1].calculation if needs else None
        needs.append(_need(clause, tools, _calculation(clause, before)))
    return tuple(needs)


def _calculation(clause: Clause, before: Calculation | None) -> Calculation | None:
    """The clause's calculation; `it` stands for the one before, or for what was asked."""
    if clause.context and not _CALCULATES_ON.search(clause.text):
        return None
    found = find_calculation(clause.text) or find_amount(clause.text)
    if found is not None or not clause.context:
        return found
    if before is not None:
        meant = "" if before.phrases else f"({before.expression})"
    else:
        meant = " ".join(clause.context)
    return find_calculation(_POINTER.sub(meant, clause.text)) if meant else None


def next_calls(needs: Sequence[Need], steps: Sequence[Step]) -> list[PlannedCall]:
    """The calls to make now: none that was made in this turn, each once."""
    wanted = [call for need in needs for call in (*need.calls, *_later_calls(need, steps))]
    return [call for call in dict.fromkeys(wanted) if not made(call.tool, call.arguments, steps)]


def figures(need: Need, steps: Sequence[Step]) -> list[Figure] | None:
    """The figures that the need's phrases name, out of the results; None if one is missing."""
    if need.calculation is None:
        return None
    ranking = Ranking(candidates([one for step in steps for one in step.result.passages]))
    found = [find_figure(phrase, need.calculation, ranking) for phrase in need.phrases]
    present = [figure for figure in found if figure is not None]
    return present if len(present) == len(need.phrases) else None


def calculation_call(need: Need, steps: Sequence[Step]) -> PlannedCall | None:
    """The call of the calculator, once all figures are known."""
    if need.calculation is None or need.calculator is None:
        return None
    found = figures(need, steps)
    if found is None:
        return None
    expression = need.calculation.filled([figure.value for figure in found])
    return _expression_call(need.calculator, expression, need.clause)


def _later_calls(need: Need, steps: Sequence[Step]) -> Iterator[PlannedCall]:
    """What the need calls once its first calls are answered."""
    if not steps or not all(made(call.tool, call.arguments, steps) for call in need.calls):
        return
    call = calculation_call(need, steps)
    if need.phrases and call:
        yield call
    if need.wider and not _is_answered(need.clause, steps):
        yield from need.wider


def _is_answered(clause: Clause, steps: Sequence[Step]) -> bool:
    passages = [passage for step in steps for passage in step.result.passages]
    ranked = Ranking(candidates(passages)).best(clause)
    return any(one.coverage >= FITTING_MIN for one in ranked)


def _need(clause: Clause, tools: Sequence[Tool], calculation: Calculation | None) -> Need:
    calculator = next((tool for tool in tools if tool.expression), None)
    searches = [tool for tool in tools if tool.query and fill(tool, clause.text) is not None]
    if calculation and calculator and not calculation.phrases:
        call = _expression_call(calculator, calculation.expression, clause)
        if call:
            return Need(clause, (call,), (), calculation, calculator)
    specific = _specific_call(clause, tools, has_search=bool(searches))
    if specific and (calculation is None or _is_named(clause, specific.tool, tools)):
        return Need(clause, (specific,))
    if calculation and calculator and searches:
        lookups = [Clause(phrase) for phrase in calculation.phrases]
        if calculation.is_implied:
            lookups.append(clause)
        calls = [call for lookup in lookups for call in _search_calls(lookup, searches)]
        return Need(clause, tuple(calls), (), calculation, calculator)
    calls = list(_search_calls(clause, searches))
    wider = list(_search_calls(clause, searches, is_wider=True))
    return Need(clause, tuple(calls), tuple(wider))


def _expression_call(tool: Tool, expression: str, clause: Clause) -> PlannedCall | None:
    arguments = fill(tool, clause.text)
    if arguments is None or tool.expression is None:
        return None
    if "sqrt" in expression and "sqrt" not in f"{tool.description} {tool.expression.description}":
        expression = without_roots(expression)
    arguments.put(tool.expression, expression)
    return _call(tool, arguments)


def _specific_call(
    clause: Clause, tools: Sequence[Tool], *, has_search: bool
) -> PlannedCall | None:
    """The call of the tool that accounts for most of what the clause says."""
    best: tuple[float, PlannedCall] | None = None
    for tool in tools:
        if tool.query or tool.expression:
            continue
        arguments = fill(tool, clause.text)
        if arguments is None:
            continue
        share = _share(clause, tool, arguments)
        needed = _SHARE_MIN if has_search else _SHARE_MIN_WITHOUT_SEARCH
        if not arguments.filled:
            needed = _SHARE_MIN_WITHOUT_ARGUMENTS
        if share >= needed and (best is None or share > best[0]):
            best = share, _call(tool, arguments)
    return best[1] if best else None


def _is_named(clause: Clause, name: str, tools: Sequence[Tool]) -> bool:
    """Whether the clause says the tool's whole name: "add a note" asks for `add-note`, and
    isn't a sum of figures that are to be looked up."""
    said = {stem(word) for word in words(clause.text)}
    return any(tool.name == name and tool.name_stems <= said for tool in tools)


def _share(clause: Clause, tool: Tool, arguments: Arguments) -> float:
    """The share of the clause's terms that are in the tool's words or in its arguments.

    Nothing unless one of them is in the tool's own name or in the first words about it.
    """
    asked = set(clause.terms) | ({stem(word) for word in words(clause.text)} & tool.name_stems)
    about = tool.name_stems | set(terms(tool.description)[:6])
    if not asked or about.isdisjoint(asked):
        return 0.0
    known = tool.vocabulary | arguments.said
    return len([term for term in asked if term in known]) / len(asked)


def _search_calls(
    clause: Clause, searches: Sequence[Tool], *, is_wider: bool = False
) -> Iterator[PlannedCall]:
    """Searches with the clause's words: the tools whose description fits, else all."""
    asked = set(clause.terms)
    fits = {tool.name: len(asked & tool.vocabulary) for tool in searches}
    most = max(fits.values(), default=0)
    for tool in [tool for tool in searches if fits[tool.name] == most][:_SEARCHES_MAX]:
        arguments = fill(tool, clause.text)
        bound = (tool.query.length_max if tool.query else None) or QUERY_CHARACTERS_MAX
        bound = min(bound, QUERY_CHARACTERS_MAX)
        query = clause.wider_query(bound) if is_wider else clause.search_query(bound)
        if arguments is not None and tool.query is not None and query:
            arguments.put(tool.query, query)
            yield _call(tool, arguments)


def _call(tool: Tool, arguments: Arguments) -> PlannedCall:
    values: dict[str, Any] = arguments.values
    return PlannedCall(tool.name, json.dumps(values, sort_keys=True))
