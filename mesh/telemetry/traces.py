"""OpenTelemetry traces: one span per call, made by hand, exported over OTLP/gRPC.

Off unless the environment asks: an OTLP endpoint is named or OTEL_TRACES_EXPORTER is
`otlp`, and OTEL_SDK_DISABLED isn't true. While off, OpenTelemetry isn't even imported.
Sampler, endpoint, headers and resource are OpenTelemetry's own variables.
Parents are W3C traceparents, handed over explicitly.
"""

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry import trace as otel
    from opentelemetry.sdk.trace import TracerProvider

Value = str | int | float | bool | tuple[str, ...]

# GenAI semantic conventions 0.1 (open-telemetry/semantic-conventions-genai); they are marked as
# in development, and the Python packages hold older names.
GEN_AI_OPERATION_NAME = "gen_ai.operation.name"
GEN_AI_PROVIDER_NAME = "gen_ai.provider.name"
GEN_AI_REQUEST_MODEL = "gen_ai.request.model"
GEN_AI_REQUEST_STREAM = "gen_ai.request.stream"
GEN_AI_OUTPUT_TYPE = "gen_ai.output.type"
GEN_AI_RESPONSE_MODEL = "gen_ai.response.model"
GEN_AI_RESPONSE_FINISH_REASONS = "gen_ai.response.finish_reasons"
GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"
GEN_AI_EMBEDDINGS_DIMENSION_COUNT = "gen_ai.embeddings.dimension.count"
GEN_AI_USAGE_INPUT_TOKENS = "gen_ai.usage.input_tokens"
GEN_AI_USAGE_OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS = "gen_ai.usage.cache_read.input_tokens"
GEN_AI_USAGE_REASONING_OUTPUT_TOKENS = "gen_ai.usage.reasoning.output_tokens"
GEN_AI_TOOL_NAME = "gen_ai.tool.name"
GEN_AI_TOOL_CALL_ID = "gen_ai.tool.call.id"

# Semantic conventions of functions as a service; what they lack is Weft's own.
FAAS_NAME = "faas.name"
FAAS_VERSION = "faas.version"
FAAS_INVOCATION_ID = "faas.invocation_id"
FAAS_COLD_START = "faas.coldstart"
FUNCTION_CPU_SECONDS = "weft.function.cpu_seconds"
FUNCTION_MEMORY_BYTES = "weft.function.memory_bytes"

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

_provider: "TracerProvider | None" = None
_tracer: "otel.Tracer | None" = None


class Span:
    """A span that is open; `traceparent` makes others its children. Empty while off."""

    __slots__ = ("_span", "traceparent")

    def __init__(self, span: "otel.Span | None", traceparent: str = "") -> None:
        self._span = span
        self.traceparent = traceparent

    def set(self, key: str, value: Value) -> None:
        """Sets an attribute."""
        if self._span is not None:
            self._span.set_attribute(key, value)

    def end(self, code: str, *, failed: bool) -> None:
        """Closes a call's span with its status code."""
        if self._span is not None:
            self._span.set_attribute("rpc.response.status_code", code)
            self._finish(code if failed else "")

    def _finish(self, error_type: str) -> None:
        if self._span is None:
            return
        if error_type:
            from opentelemetry.trace import StatusCode

            self._span.set_attribute("error.type", error_type)
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


def wanted(environment: Mapping[str, str]) -> bool:
    """Whether these variables ask for traces."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if exporter:
        return exporter == "otlp"
    return any(environment.get(name) for name in _ENDPOINTS)


def active() -> bool:
    """Whether spans are recorded."""
    return _tracer is not None


def start(instance: str) -> bool:
    """Turns tracing on if the environment asks for it; says whether it did."""
    global _provider, _tracer
    if _tracer is not None or not wanted(os.environ):
        return _tracer is not None
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    attributes = {"service.instance.id": instance}
    if "OTEL_SERVICE_NAME" not in os.environ:
        attributes["service.name"] = "weft"
    _provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
    _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _tracer = _provider.get_tracer("weft")
    return True


def stop(timeout_seconds: float) -> None:
    """Exports what is pending and turns tracing off; blocks for `timeout_seconds` at most.

    Spans that the collector doesn't take in that time are lost.
    """
    global _provider, _tracer
    provider, _provider, _tracer = _provider, None, None
    if provider is None:
        return
    # The exporter goes on retrying past any limit of its own; a daemon thread can be left.
    closing = threading.Thread(target=provider.shutdown, name="traces-stop", daemon=True)
    closing.start()
    closing.join(timeout_seconds)


def start_server_span(service: str, method: str, parent: str) -> Span:
    """Opens the span of a call that is being answered; tracing must be on."""
    from opentelemetry.trace import SpanKind

    attributes = {"rpc.system.name": "grpc", "rpc.method": f"{service}/{method}"}
    return _open(f"{service}/{method}", SpanKind.SERVER, parent, attributes)


@contextmanager
def model_span(operation: str, provider: str, model: str, parent: str) -> Iterator[Span]:
    """A span around a request to a model, such as `chat`; `parent` is the call's
    traceparent. The caller sets the GEN_AI_USAGE_ attributes once they are known."""
    attributes: dict[str, Value] = {
        GEN_AI_OPERATION_NAME: operation,
        GEN_AI_PROVIDER_NAME: provider,
        GEN_AI_REQUEST_MODEL: model,
    }
    with _child(f"{operation} {model}", parent, attributes) as span:
        yield span


@contextmanager
def tool_span(tool: str, call_id: str, parent: str) -> Iterator[Span]:
    """A span around one execution of a tool; `parent` is the call's traceparent."""
    attributes: dict[str, Value] = {
        GEN_AI_OPERATION_NAME: "execute_tool",
        GEN_AI_TOOL_NAME: tool,
        GEN_AI_TOOL_CALL_ID: call_id,
    }
    with _child(f"execute_tool {tool}", parent, attributes) as span:
        yield span


@contextmanager
def function_span(function: str, version: int, invocation: str, parent: str) -> Iterator[Span]:
    """A span around one invocation of a function; `parent` is the call's traceparent. The
    caller sets what it used once that is known."""
    attributes: dict[str, Value] = {
        FAAS_NAME: function,
        FAAS_VERSION: str(version),
        FAAS_INVOCATION_ID: invocation,
    }
    with _child(f"invoke_function {function}", parent, attributes) as span:
        yield span


@contextmanager
def _child(name: str, parent: str, attributes: Mapping[str, Value]) -> Iterator[Span]:
    if _tracer is None:
        yield Span(None, parent)
        return
    from opentelemetry.trace import SpanKind

    span = _open(name, SpanKind.CLIENT, parent, attributes)
    try:
        yield span
    except BaseException as error:
        span._finish(type(error).__name__)
        raise
    span._finish("")


def _open(name: str, kind: "otel.SpanKind", parent: str, attributes: Mapping[str, Any]) -> Span:
    assert _tracer is not None
    span = _tracer.start_span(
        name, context=_parent_context(parent), kind=kind, attributes=attributes
    )
    ids = span.get_span_context()
    traceparent = f"00-{ids.trace_id:032x}-{ids.span_id:016x}-{int(ids.trace_flags):02x}"
    return Span(span, traceparent)


def _parent_context(traceparent: str) -> Any:
    """The context that `traceparent` stands for, which mesh.rpc has checked; an empty one
    begins a trace."""
    from opentelemetry import trace as otel
    from opentelemetry.context import Context

    if not traceparent:
        return Context()
    _, trace_id, span_id, flags = traceparent.split("-")
    parent = otel.SpanContext(
        int(trace_id, 16), int(span_id, 16), True, otel.TraceFlags(int(flags, 16))
    )
    return otel.set_span_in_context(otel.NonRecordingSpan(parent), Context())
