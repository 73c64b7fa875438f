"""Files that say what an agent is.

    agent: librarian
    model: builtin/extractive
    instructions: Answer from the documents.
    tools:
      - calculator
      - {tool: search, fixed_arguments: {collection: docs}}
    limits: {steps_max: 8, turn_timeout: 120s}

The fields are those of `weft.agents.v1.AgentSpec` in ProtoJSON, beside `agent`. A tool
may be its id alone, and its fixed arguments an object.
"""

import difflib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from mesh.cli.failures import CommandFailed, usage_error

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor, FieldDescriptor

    from weft.agents.v1 import agent_pb2


def parse_agent(text: str, origin: str) -> "tuple[str, agent_pb2.AgentSpec]":
    """The agent's id (or full name) and its spec, of YAML or JSON text.

    `origin` is the file's name, for messages. CommandFailed (usage) that names the path
    of what is wrong.
    """
    from google.protobuf import json_format

    from weft.agents.v1 import agent_pb2

    document = _load(text, origin)
    agent = document.pop("agent", None)
    if not isinstance(agent, str) or not agent:
        raise usage_error(f"{origin}: `agent` must be the agent's id")
    try:
        spec = _message(document, agent_pb2.AgentSpec.DESCRIPTOR, "", also=("agent",))
        return agent, json_format.ParseDict(spec, agent_pb2.AgentSpec())
    except CommandFailed as failure:
        raise usage_error(f"{origin}: {failure.message}", *failure.notes) from failure
    except json_format.ParseError as error:
        raise usage_error(f"{origin}: {error}") from error


def _load(text: str, origin: str) -> dict[str, Any]:
    import yaml

    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        lines = " ".join(str(error).split())
        raise usage_error(f"{origin} is neither YAML nor JSON: {lines}") from error
    if not isinstance(document, dict):
        raise usage_error(f"{origin} must hold one object, with `agent` and the agent's fields")
    return document


def _message(
    value: object, descriptor: "Descriptor", path: str, also: Iterable[str] = ()
) -> dict[str, Any]:
    """The object with its keys checked against the message, deep down."""
    if not isinstance(value, dict):
        raise usage_error(f"{path} must be an object")
    value = _short_forms(value, descriptor, path)
    fields = {name: field for field in descriptor.fields for name in (field.name, field.json_name)}
    known = [field.name for field in descriptor.fields] + list(also)
    checked: dict[str, Any] = {}
    for key, item in value.items():
        inner = f"{path}.{key}" if path else str(key)
        if key not in fields:
            raise _unknown(str(key), inner, known)
        checked[key] = _value(item, fields[key], inner)
    return checked


def _value(value: object, field: "FieldDescriptor", path: str) -> object:
    descriptor = field.message_type
    if descriptor is None:
        return value
    if field.is_repeated:
        if not isinstance(value, list):
            raise usage_error(f"{path} must be a list")
        return [
            _message(_tool(item, descriptor), descriptor, f"{path}[{index}]")
            for index, item in enumerate(value)
        ]
    if descriptor.full_name == "google.protobuf.Duration":
        return f"{value}s" if isinstance(value, int | float) else value
    return _message(value, descriptor, path)


def _tool(item: object, descriptor: "Descriptor") -> object:
    is_binding = descriptor.full_name == "weft.agents.v1.ToolBinding"
    return {"tool": item} if is_binding and isinstance(item, str) else item


def _short_forms(value: dict[str, Any], descriptor: "Descriptor", path: str) -> dict[str, Any]:
    if descriptor.full_name != "weft.agents.v1.ToolBinding" or "fixed_arguments" not in value:
        return value
    value = dict(value)
    arguments = value.pop("fixed_arguments")
    if not isinstance(arguments, dict):
        raise usage_error(f"{path}.fixed_arguments must be an object")
    # Sorted, so that the same file is the same spec.
    text = json.dumps(arguments, ensure_ascii=False, sort_keys=True, default=str)
    return value | {"fixed_arguments_json": text}


def _unknown(key: str, path: str, known: Iterable[str]) -> CommandFailed:
    names = list(known)
    if "fixed_arguments_json" in names:
        names.append("fixed_arguments")
    close = difflib.get_close_matches(key, names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return usage_error(f"unknown key {path!r}{hint}", f"Known here: {', '.join(names)}.")
