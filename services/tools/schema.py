"""Checks arguments against a tool's JSON Schema (draft 2020-12)."""

import json
import math
from collections.abc import Sequence
from itertools import islice
from typing import Any, NoReturn

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from referencing import Registry
from referencing.exceptions import Unresolvable

from mesh.errors import FieldViolation, InvalidArgument
from services.tools.lru import Lru
from services.tools.results import cut
from services.tools.untrusted_schema import BoundedValidator, TooCostly
from weft.tools.v1 import tools_pb2

FIELD = "arguments_json"
ERRORS_MAX = 8
ERROR_LENGTH_MAX = 300


class ArgumentsRefused(InvalidArgument):
    """What is wrong with the arguments, in words that let a model do better. Paths are
    those of the arguments, under the request's `arguments_json`."""

    def __init__(self, message: str, violations: Sequence[FieldViolation] = ()) -> None:
        whole = FieldViolation(FIELD, message)
        super().__init__(message, violations=violations or [whole])


class ArgumentChecker:
    """Keeps the compiled schemas of the `compiled_max` tools that were called last."""

    def __init__(self, compiled_max: int) -> None:
        self._validators: Lru[str, Draft202012Validator | BoundedValidator] = Lru(compiled_max)

    def check(self, tool: tools_pb2.Tool, arguments_json: str) -> dict[str, Any]:
        """The arguments; nothing at all counts as `{}`. Raises ArgumentsRefused."""
        arguments = _parsed(arguments_json)
        validator = self._validators.get(tool.etag, lambda: _compiled(tool))
        try:
            errors = list(islice(validator.iter_errors(arguments), ERRORS_MAX))
        except RecursionError:
            raise ArgumentsRefused("the arguments are nested too deep") from None
        except TooCostly:
            raise ArgumentsRefused("to check the arguments takes too long") from None
        except OverflowError:
            raise ArgumentsRefused("a number of the arguments is too large to be checked") from None
        except Unresolvable:
            raise ArgumentsRefused("the tool's schema refers to what isn't there") from None
        if errors:
            violations = [_violation(error) for error in errors]
            lines = "\n".join(f"- {_described(violation)}" for violation in violations)
            message = f"the arguments don't fit the tool's schema:\n{lines}"
            raise ArgumentsRefused(message, violations)
        return arguments


def _parsed(arguments_json: str) -> dict[str, Any]:
    if not arguments_json.strip():
        return {}
    try:
        arguments = json.loads(arguments_json, parse_constant=_refuse_constant, parse_float=_number)
    except RecursionError:
        raise ArgumentsRefused("the arguments are nested too deep") from None
    except ValueError as error:
        raise ArgumentsRefused(f"the arguments aren't JSON: {error}") from None
    if not isinstance(arguments, dict):
        raise ArgumentsRefused("the arguments aren't a JSON object")
    if "\\ud" in arguments_json.lower() and not _is_text(arguments):
        raise ArgumentsRefused("the arguments hold half of a character (a lone surrogate)")
    return arguments


def _is_text(arguments: dict[str, Any]) -> bool:
    """Whether all of it can be encoded: JSON's escapes can say what Unicode can't."""
    try:
        json.dumps(arguments, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _number(text: str) -> float:
    # Past the largest it would become infinity, which JSON can't say to who takes it on.
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{cut(text, 20)} is too large a number")
    return number


def _compiled(tool: tools_pb2.Tool) -> Draft202012Validator | BoundedValidator:
    # What a tenant or its server wrote must not hold up the calls of others.
    if tool.HasField("mcp") or tool.HasField("function"):
        return BoundedValidator(tool.parameters_json_schema)
    # An empty registry: a reference can't make us fetch anything.
    return Draft202012Validator(json.loads(tool.parameters_json_schema), registry=Registry())


def _violation(error: ValidationError) -> FieldViolation:
    path = "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in error.path)
    return FieldViolation(FIELD + path, cut(error.message, ERROR_LENGTH_MAX))


def _described(violation: FieldViolation) -> str:
    path = violation.field.removeprefix(FIELD).removeprefix(".") or "arguments"
    return cut(f"{path}: {violation.description}", ERROR_LENGTH_MAX)
