"""Refuses requests that don't parse or break the bounds of their fields."""

from typing import Any

from mesh.errors import InvalidArgument
from mesh.rpc.methods import MALFORMED, MethodSpec


def validate(spec: MethodSpec, request: Any) -> None:
    """Raises InvalidArgument with what is wrong with the request."""
    if request is MALFORMED:
        name = spec.request_class.DESCRIPTOR.full_name
        raise InvalidArgument.of("request", f"its bytes aren't a {name}")
    violations = spec.violations(request)
    if violations:
        text = "; ".join(f"{item.field}: {item.description}" for item in violations)
        raise InvalidArgument(text, violations=violations)
