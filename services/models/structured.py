"""Answers that must fit a JSON Schema: checked here, whatever the provider promises.

The schema is a caller's and the answer a model's, so that a check must not take for ever:
its time is bounded, and `pattern` isn't checked (the provider still sees it), since a regular
expression can't be stopped.
"""

import json
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any, NoReturn

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.validators import extend
from referencing import Registry
from referencing.exceptions import Unresolvable

from mesh.errors import ModelBadAnswer
from services.models.tokens import add_usage
from weft.models.v1 import model_service_pb2 as pb
from weft.models.v1 import models_pb2

CHECK_SECONDS_MAX = 0.25
"""Processor time that the check of one answer may take."""
ATTEMPTS_MAX = 2
PROBLEM_CHARACTERS_MAX = 500

Parts = AsyncGenerator[str | pb.GenerateResponse, None]
Ask = Callable[[pb.GenerateRequest], Parts]

_limit: ContextVar[float] = ContextVar("weft_schema_limit")


class _TooLong(Exception):
    """The check took longer than is allowed."""


def _timed(keyword: Any) -> Any:
    def check(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any]:
        if time.thread_time() > _limit.get():
            raise _TooLong
        yield from keyword(validator, value, instance, schema) or ()

    return check


def _unique(validator: Any, wanted: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    # Items in the order of their text; the library compares each with each.
    if wanted and isinstance(instance, list):
        written = {json.dumps(item, sort_keys=True) for item in instance}
        if len(written) < len(instance):
            yield ValidationError("the items aren't unique")


_VALIDATOR: Any = extend(  # type: ignore[no-untyped-call]
    Draft202012Validator,
    {
        **{name: _timed(check) for name, check in Draft202012Validator.VALIDATORS.items()},
        "uniqueItems": _timed(_unique),
        "pattern": lambda *_: (),
    },
)


def schema_problem(text: str) -> str:
    """What is wrong with a schema, in words; empty where it can be used."""
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError):
        return "must be JSON"
    if not isinstance(schema, dict):
        return "must be a JSON object"
    if '"patternProperties"' in text:
        return "must not use patternProperties"
    try:
        Draft202012Validator.check_schema(schema)
    except (SchemaError, RecursionError):
        return "must be a JSON Schema of draft 2020-12"
    return ""


async def structured(request: pb.GenerateRequest, ask: Ask) -> Parts:
    """The answer as one text that fits the request's schema, then whole; `ask` calls the model.
    Where it doesn't fit, the model is told why and asked once more; `usage` is of both calls.

    An answer that calls tools is passed on as it is. Raises ModelBadAnswer where none fits, or
    it was cut short, and what `ask` raises.
    """
    schema = json.loads(request.response_json_schema)
    usage = models_pb2.Usage()
    asked = request
    for _ in range(ATTEMPTS_MAX):
        answer = await whole(ask(asked))
        add_usage(usage, answer.usage)
        answer.usage.CopyFrom(usage)
        if answer.message.tool_calls:
            if answer.message.text:
                yield answer.message.text
            yield answer
            return
        text, problem = _checked(answer.message.text, schema)
        if not problem:
            answer.message.text = text
            yield text
            yield answer
            return
        if answer.finish_reason != models_pb2.FINISH_REASON_STOP:
            break
        asked = _asked_again(asked, answer.message, problem)
    raise ModelBadAnswer("the model's answer doesn't fit the JSON Schema")


async def whole(parts: Parts) -> pb.GenerateResponse:
    """The response at the end of an answer's parts. Raises ModelBadAnswer where there is none."""
    answer: pb.GenerateResponse | None = None
    # To the end: who is closed before it can't tell that all went well.
    async with aclosing(parts):
        async for part in parts:
            if isinstance(part, pb.GenerateResponse):
                answer = part
    if answer is None:
        raise ModelBadAnswer("the model's answer has no end")
    return answer


def _checked(text: str, schema: Mapping[str, Any]) -> tuple[str, str]:
    """The JSON of an answer without what models like to write around it, and what is wrong
    with it, in words for the model."""
    bare = _unfenced(text.strip())
    try:
        value = json.loads(bare, parse_constant=_refuse_constant)
    except RecursionError:
        return bare, "it is nested too deep"
    except ValueError as error:
        return bare, f"it isn't JSON: {error}"
    _limit.set(time.thread_time() + CHECK_SECONDS_MAX)
    # An empty registry: a reference can't make us fetch anything.
    validator = _VALIDATOR(schema, registry=Registry())
    try:
        problem = next(iter(validator.iter_errors(value)), None)
    except (RecursionError, _TooLong):
        return bare, "it takes too long to check"
    except Unresolvable:
        return bare, "the schema refers to something that it doesn't hold"
    if problem is None:
        return bare, ""
    return bare, f"at {problem.json_path}: {problem.message}"[:PROBLEM_CHARACTERS_MAX]


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _unfenced(text: str) -> str:
    """The text within a Markdown fence, where it is in one."""
    first, _, rest = text.partition("\n")
    if first in ("```", "```json") and rest.endswith("```"):
        return rest.removesuffix("```").strip()
    return text


def _asked_again(
    request: pb.GenerateRequest, said: models_pb2.Message, problem: str
) -> pb.GenerateRequest:
    again = pb.GenerateRequest()
    again.CopyFrom(request)
    if said.text:
        again.conversation.messages.append(said)
    again.conversation.messages.add(
        role=models_pb2.ROLE_USER,
        text=f"That doesn't fit the JSON Schema: {problem}. Answer again, with the JSON alone.",
    )
    return again
