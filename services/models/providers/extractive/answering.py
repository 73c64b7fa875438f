"""Writes the answer to a turn from what its tools returned."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from services.models.providers.extractive.figures import candidates
from services.models.providers.extractive.planning import (
    Need,
    calculation_call,
    figures,
)
from services.models.providers.extractive.questions import Clause
from services.models.providers.extractive.quoting import Quote, quote, quoted
from services.models.providers.extractive.ranking import Candidate, Ranking
from services.models.providers.extractive.results import relevant_facts
from services.models.providers.extractive.schema import Tool
from services.models.providers.extractive.transcript import Step, made

_ERROR_CHARACTERS_MAX = 500


@dataclass(slots=True)
class _Sources:
    """Numbers the sources in the order in which they are first quoted."""

    numbers: dict[tuple[str, str], int] = field(default_factory=dict)

    def number(self, candidate: Candidate) -> int:
        key = (candidate.uri, candidate.title)
        return self.numbers.setdefault(key, len(self.numbers) + 1)

    def lines(self) -> list[str]:
        return [
            f"[{number}] {' — '.join(dict.fromkeys(filter(None, (title, uri)))) or 'tool result'}"
            for (uri, title), number in self.numbers.items()
        ]


def answer(needs: Sequence[Need], steps: Sequence[Step], tools: Sequence[Tool]) -> str:
    """The answer to all clauses, each in a paragraph, the sources below. The calls of
    `steps` that no clause accounts for are reported too."""
    sources = _Sources()
    passages = [passage for step in steps for passage in step.result.passages]
    ranking = Ranking(candidates(passages))
    searches = {tool.name for tool in tools if tool.query}
    paragraphs: list[str] = []
    reported: set[tuple[str, str]] = set()
    for need in needs:
        paragraphs += _need_paragraphs(need, steps, ranking, sources, searches)
        reported |= {(step.tool, step.arguments) for step in _steps_of(need, steps)}
    asked = frozenset(term for need in needs for term in need.clause.terms)
    for step in steps:
        if (step.tool, step.arguments) not in reported:
            paragraphs += _report(step, asked)
    paragraphs = list(dict.fromkeys(paragraphs))
    if sources.numbers:
        paragraphs.append("\n".join(["Sources:", *sources.lines()]))
    return "\n\n".join(paragraphs)


def _steps_of(need: Need, steps: Sequence[Step]) -> list[Step]:
    calls = [*need.calls]
    call = calculation_call(need, steps) if need.phrases else None
    calls += [call] if call else []
    found = [step for one in calls for step in made(one.tool, one.arguments, steps)]
    return list(dict.fromkeys(found))


def _need_paragraphs(
    need: Need, steps: Sequence[Step], ranking: Ranking, sources: _Sources, searches: set[str]
) -> list[str]:
    own = _steps_of(need, steps)
    asked = frozenset(need.clause.terms)
    failures = [_failure(step) for step in own if step.is_error]
    others = [step for step in own if step.tool not in searches and not step.is_error]
    found: list[str] = []
    for step in others:
        found += _calculated(step, need) or _report(step, asked)
    searched = [step for step in own if step.tool in searches and not step.is_error]
    if need.phrases and figures(need, steps):
        found = _figure_quotes(need, steps, sources) + found
    elif need.phrases and not (need.calculation and need.calculation.is_implied):
        for phrase in need.phrases:
            found += _quotes(Clause(phrase), ranking, sources)
        found.append("I found no figure to calculate with.")
    elif searched or any(step.result.passages for step in others):
        found += _quotes(need.clause, ranking, sources)
    return found + failures


def _quotes(clause: Clause, ranking: Ranking, sources: _Sources) -> list[str]:
    chosen = quote(clause, ranking)
    if not chosen:
        return [
            f"I found nothing in the documents that answers “{clause.subject.strip(' ?.!')}”. "
            "As an offline extractive model I can only quote what the tools return."
        ]
    return [" ".join(_quoted(one, sources) for one in chosen)]


def _quoted(one: Quote, sources: _Sources) -> str:
    return f"{one.text} [{sources.number(one.candidate)}]"


def _figure_quotes(need: Need, steps: Sequence[Step], sources: _Sources) -> list[str]:
    found = figures(need, steps) or []
    return [" ".join(dict.fromkeys(_quoted(quoted(figure.source), sources) for figure in found))]


def _calculated(step: Step, need: Need) -> list[str]:
    """`12 * 7 = 84` for the calculator's answer."""
    if need.calculator is None or step.tool != need.calculator.name or not step.result.facts:
        return []
    value: object = json.loads(step.arguments)
    expression = need.calculator.expression
    for name in expression.path if expression else ():
        value = value.get(name) if isinstance(value, dict) else None
    return [f"{value} = {step.result.facts[-1][1]}"]


def _report(step: Step, asked: frozenset[str]) -> list[str]:
    if step.is_error:
        return [_failure(step)]
    if step.result.is_empty:
        return [f"{step.tool} returned nothing."]
    facts = relevant_facts(step.result.facts, asked)
    if len(facts) == 1 and not facts[0][0]:
        return [f"{step.tool}: {facts[0][1]}"]
    return (
        [f"{step.tool}: {', '.join(f'{name}: {value}' for name, value in facts)}"] if facts else []
    )


def _failure(step: Step) -> str:
    reason = " ".join(step.text.split())[:_ERROR_CHARACTERS_MAX]
    return f"The tool {step.tool} failed: {reason}"
