"""Answers that must fit a JSON Schema: checked here, whatever the provider promises.

The schema is a caller's and the answer a model's, so that a check must not take for ever:
its time is bounded, and `pattern` isn't checked (the provider still sees it), since a regular
expression can't be stopped. It runs in a thread, so that other calls go on meanwhile. `$schema`
is left out: where it stands, the library would go on with its own validator, without bounds.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any, NoReturn

import structlog
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend
from jsonschema_specifications import (  # type: ignore[import-untyped]
    REGISTRY as SPECIFICATIONS,
)
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from mesh.errors import ModelBadAnswer
from services.models.tokens import add_usage
from weft.models.v1 import model_service_pb2 as pb
from weft.models.v1 import models_pb2

CHECK_SECONDS_MAX = 0.25
"""Processor time that the check of one answer may take."""
SCHEMA_SECONDS_MAX = 1.0
"""And that of a schema."""
ATTEMPTS_MAX = 2
PROBLEM_CHARACTERS_MAX = 500

Parts = AsyncGenerator[str | pb.GenerateResponse, None]
Ask = Callable[[pb.GenerateRequest], Parts]

_log = structlog.get_logger(__name__)

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


def _bare(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema without `$schema`."""
    return {name: value for name, value in schema.items() if name != "$schema"}


_META_SCHEMA = _bare(Draft202012Validator.META_SCHEMA)
_META_SCHEMAS: Registry[Any] = Registry().with_resources(
    (uri, DRAFT202012.create_resource(_bare(SPECIFICATIONS.contents(uri))))
    for uri in SPECIFICATIONS
    if "/draft/2020-12/" in uri
)


def schema_problem(text: str) -> str:
    """What is wrong with a schema, in words; empty where it can be used."""
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError):
        return "must be JSON"
    if not isinstance(schema, dict):
        return "must be a JSON object"
    try:
        # Written anew: in the text names may be escaped.
        written = json.dumps(_bare(schema))
    except RecursionError:
        return "is nested too deep"
    if '"patternProperties"' in written:
        return "must not use patternProperties"
    if '"$schema"' in written:
        return "must not use $schema but at its top"
    _limit.set(time.thread_time() + SCHEMA_SECONDS_MAX)
    validator = _VALIDATOR(
        _META_SCHEMA,
        registry=_META_SCHEMAS,
        format_checker=Draft202012Validator.FORMAT_CHECKER,
    )
    try:
        is_schema = validator.is_valid(schema)
    except _TooLong:
        return "takes too long to check"
    except RecursionError:
        is_schema = False
    return "" if is_schema else "must be a JSON Schema of draft 2020-12"


async def structured(request: pb.GenerateRequest, ask: Ask) -> Parts:
    """The answer as one text that fits the request's schema, then whole; `ask` calls the model.
    Where it doesn't fit, the model is told why and asked once more; `usage` is of both calls.

    An answer that calls tools is passed on as it is. Raises ModelBadAnswer where none fits, or
    it was cut short, and what `ask` raises.
    """
    schema = _bare(json.loads(request.response_json_schema))
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
        text, problem = await asyncio.to_thread(_checked, answer.message.text, schema)
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
    except Exception as error:  # noqa: BLE001 - a reference may lead to what is no schema, or a number past floats
        _log.info("answer_not_checked", error=type(error).__name__)
        return bare, "it can't be checked"
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
