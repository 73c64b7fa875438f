"""What the bounds of a message's fields refuse, and under which path."""

import re
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, duration_pb2, message_factory
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from mesh.rpc.validation import VIOLATIONS_MAX, violations_of
from weft.agents.v1 import agent_pb2, agent_service_pb2, turn_service_pb2
from weft.auth.v1 import api_key_service_pb2
from weft.models.v1 import model_service_pb2, models_pb2
from weft.options.v1 import options_pb2
from weft.state.v1 import session_service_pb2, state_service_pb2
from weft.tools.v1 import tool_service_pb2
from weft.vectors.v1 import collections_pb2, vector_service_pb2

COLLECTION = "tenants/default/collections/docs"
SESSION = "tenants/default/agents/bot/sessions/s1"


def found(message: Message) -> list[tuple[str, str]]:
    violations = violations_of(message.DESCRIPTOR)(message)
    return [(violation.field, violation.description) for violation in violations]


def paths(message: Message) -> list[str]:
    return [path for path, _ in found(message)]


def agent(**spec: Any) -> agent_service_pb2.CreateAgentRequest:
    return agent_service_pb2.CreateAgentRequest(
        parent="tenants/default", agent_id="bot", spec=agent_pb2.AgentSpec(**spec)
    )


def run_turn(timeout: duration_pb2.Duration) -> turn_service_pb2.RunTurnRequest:
    return turn_service_pb2.RunTurnRequest(session=SESSION, input="hello", timeout=timeout)


GOOD = [
    vector_service_pb2.SearchRequest(name=COLLECTION, query="q", passages_max=100),
    vector_service_pb2.ListCollectionsRequest(parent="tenants/a", page_size=0),
    agent(),
    agent(model="builtin/extractive", tools=[agent_pb2.ToolBinding(tool="calculator")]),
    run_turn(duration_pb2.Duration(seconds=86400)),
    run_turn(duration_pb2.Duration()),
    state_service_pb2.GetStateRequest(name=SESSION),
    state_service_pb2.GetStateRequest(name=SESSION, revision=1),
    state_service_pb2.GetStateRequest(name=SESSION, time=Timestamp(seconds=1, nanos=999_999_999)),
    state_service_pb2.WatchEventsRequest(name="tenants/default"),
    state_service_pb2.WatchEventsRequest(name=SESSION, types=[""]),
    session_service_pb2.ListSessionsRequest(parent="tenants/default/agents/-"),
]


@pytest.mark.parametrize("message", GOOD, ids=lambda message: type(message).__name__)
def test_a_good_message_has_no_violations(message: Message) -> None:
    assert found(message) == []


BAD = [
    (vector_service_pb2.SearchRequest(query="q"), "name", "is required"),
    (
        vector_service_pb2.SearchRequest(name=COLLECTION, query="q" * 4097),
        "query",
        "must be at most 4096 characters long",
    ),
    (
        vector_service_pb2.SearchRequest(name=COLLECTION, query="q", passages_max=101),
        "passages_max",
        "must be at most 100",
    ),
    (
        vector_service_pb2.SearchRequest(name=COLLECTION, query="q", passages_max=-1),
        "passages_max",
        "must be at least 0",
    ),
    (
        vector_service_pb2.SearchRequest(name="tenants/default/agents/docs", query="q"),
        "name",
        "must be named tenants/*/collections/*",
    ),
    (
        vector_service_pb2.UpsertDocumentsRequest(name=COLLECTION),
        "documents",
        "is required",
    ),
    (
        vector_service_pb2.UpsertDocumentsRequest(
            name=COLLECTION,
            documents=[collections_pb2.Document(uri="a"), collections_pb2.Document()],
        ),
        "documents[1].uri",
        "is required",
    ),
    (
        vector_service_pb2.UpsertDocumentsRequest(
            name=COLLECTION, documents=[collections_pb2.Document()] * 257
        ),
        "documents",
        "must have at most 256 entries",
    ),
    (
        vector_service_pb2.DeleteDocumentsRequest(name=COLLECTION, uris=["a", "b" * 2049]),
        "uris[1]",
        "must be at most 2048 characters long",
    ),
    (
        vector_service_pb2.UpsertDocumentsRequest(
            name=COLLECTION,
            documents=[collections_pb2.Document(uri="a", media_type=99)],  # type: ignore[arg-type]
        ),
        "documents[0].media_type",
        "must be a known value of weft.vectors.v1.MediaType",
    ),
    (
        agent_service_pb2.CreateAgentRequest(parent="tenants/default", agent_id="bot"),
        "spec",
        "is required",
    ),
    (agent(model="no-slash"), "spec.model", "must match [a-z0-9][a-z0-9-]*/[A-Za-z0-9._:/@-]+"),
    (
        agent(tools=[agent_pb2.ToolBinding(tool="a")] * 2 + [agent_pb2.ToolBinding(tool="A")]),
        "spec.tools[2].tool",
        "must match [a-z0-9][a-z0-9-]{0,62}",
    ),
    (agent(limits=agent_pb2.Limits(steps_max=257)), "spec.limits.steps_max", "must be at most 256"),
    (run_turn(duration_pb2.Duration(seconds=86400, nanos=1)), "timeout", "must be at most 86400 s"),
    (run_turn(duration_pb2.Duration(nanos=-1)), "timeout", "must be at least 0 s"),
    (
        run_turn(duration_pb2.Duration(seconds=1, nanos=-1)),
        "timeout",
        "isn't a well-formed duration",
    ),
    (
        run_turn(duration_pb2.Duration(nanos=1_000_000_000)),
        "timeout",
        "isn't a well-formed duration",
    ),
    (
        state_service_pb2.GetStateRequest(name=SESSION, revision=0),
        "revision",
        "must be at least 1",
    ),
    (
        state_service_pb2.GetStateRequest(name=SESSION, time=Timestamp(nanos=-1)),
        "time",
        "isn't a well-formed timestamp",
    ),
    (
        state_service_pb2.GetStateRequest(name=SESSION, time=Timestamp(seconds=253_402_300_800)),
        "time",
        "isn't a well-formed timestamp",
    ),
    (
        tool_service_pb2.RegisterToolRequest(
            parent="tenants/default",
            tool_id="t",
            grpc={"address": "localhost:1", "method": "p.S/M"},  # type: ignore[arg-type]
        ),
        "effect",
        "is required",
    ),
    (
        model_service_pb2.StreamGenerateRequest(
            request=model_service_pb2.GenerateRequest(
                parent="tenants/default",
                conversation=models_pb2.Conversation(messages=[models_pb2.Message()]),
            )
        ),
        "request.conversation.messages[0].role",
        "is required",
    ),
    (
        api_key_service_pb2.CreateApiKeyRequest(
            parent="tenants/acme", roles=["tenants/acme/roles/viewer", ""]
        ),
        "roles[1]",
        "must not be empty",
    ),
]


@pytest.mark.parametrize(("message", "path", "description"), BAD)
def test_a_bad_field_is_named_with_its_whole_path(
    message: Message, path: str, description: str
) -> None:
    assert found(message) == [(path, description)]


def test_all_that_is_wrong_is_said_at_once() -> None:
    assert paths(vector_service_pb2.CreateCollectionRequest(request_id="no spaces")) == [
        "parent",
        "collection_id",
        "request_id",
    ]


def test_the_number_of_violations_is_bounded() -> None:
    documents = [collections_pb2.Document()] * 256
    message = vector_service_pb2.UpsertDocumentsRequest(documents=documents)
    assert len(found(message)) == VIOLATIONS_MAX


def test_lengths_are_counted_in_code_points() -> None:
    message = vector_service_pb2.SearchRequest(name=COLLECTION, query="\N{SNOWMAN}" * 4096)
    assert found(message) == []


@pytest.mark.parametrize(
    "name",
    [
        "tenants/default",
        "tenants/default/collections/",
        "tenants/default/collections/-a",
        "tenants/default/collections/A",
        "tenants/default/collections/a/b",
        "/tenants/default/collections/a",
        "tenants/default/collections/a\n",
        "tenants/default/collections/" + "a" * 64,
        "tenants/*/collections/*",
    ],
)
def test_other_forms_of_a_name_are_refused(name: str) -> None:
    assert paths(vector_service_pb2.GetCollectionRequest(name=name)) == ["name"]


def test_a_dash_stands_for_all_only_where_the_pattern_says_so() -> None:
    request = session_service_pb2.CreateSessionRequest(parent="tenants/default/agents/-")
    assert paths(request) == ["parent"]


@given(st.text(alphabet="ab0-A/\n\N{SNOWMAN}", max_size=66))
def test_an_id_is_accepted_exactly_when_it_is_a_nats_token_of_our_form(tool: str) -> None:
    expected = [] if re.fullmatch("[a-z0-9][a-z0-9-]{0,62}", tool) else ["spec.tools[0].tool"]
    assert paths(agent(tools=[agent_pb2.ToolBinding(tool=tool)])) == expected


def bounded(field: descriptor_pb2.FieldDescriptorProto, **bounds: Any) -> None:
    field.options.Extensions[options_pb2.bounds].CopyFrom(options_pb2.FieldBounds(**bounds))


@pytest.fixture(scope="module")
def tree_class() -> type[Message]:
    """A type that no contract has yet: it holds itself, a map, and an optional number."""
    file = descriptor_pb2.FileDescriptorProto(
        name="weft/test/tree.proto", package="weft.test", syntax="proto3"
    )
    tree = file.message_type.add(name="Tree")
    entry = tree.nested_type.add(name="LabelsEntry")
    entry.options.map_entry = True
    for number, name in enumerate(("key", "value"), 1):
        entry.field.add(name=name, number=number, type=9, label=1)
    labels = tree.field.add(
        name="labels", number=1, type=11, label=3, type_name=".weft.test.Tree.LabelsEntry"
    )
    bounded(labels, items_max=2, length_max=3, pattern="[a-z]*")
    tree.field.add(name="children", number=2, type=11, label=3, type_name=".weft.test.Tree")
    bounded(tree.field[1], items_max=4)
    weight = tree.field.add(name="weight", number=3, type=1, label=1, proto3_optional=True)
    weight.oneof_index = 0
    tree.oneof_decl.add(name="_weight")
    bounded(weight, required=True, minimum=0)
    data = tree.field.add(name="data", number=4, type=12, label=1)
    bounded(data, bytes_max=2)
    pool: Any = descriptor_pool
    pool.Default().AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.Default().FindMessageTypeByName("weft.test.Tree"))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"weight": 0}, []),
        ({}, ["weight"]),
        ({"weight": -1}, ["weight"]),
        ({"weight": float("nan")}, ["weight"]),
        ({"weight": 1, "data": b"12"}, []),
        ({"weight": 1, "data": b"123"}, ["data"]),
        ({"weight": 1, "labels": {"a": "b"}}, []),
        ({"weight": 1, "labels": {"a": "B"}}, ['labels["a"]']),
        ({"weight": 1, "labels": {"long": "b"}}, ['labels["long"]']),
        ({"weight": 1, "labels": {"a": "", "b": "", "c": ""}}, ["labels"]),
        ({"weight": 1, "children": [{"weight": 1}, {}]}, ["children[1].weight"]),
        (
            {"weight": 1, "children": [{"weight": 1, "children": [{"weight": -1}]}]},
            ["children[0].children[0].weight"],
        ),
    ],
)
def test_maps_optional_fields_and_types_that_hold_themselves(
    tree_class: type[Message], fields: dict[str, Any], expected: list[str]
) -> None:
    assert paths(tree_class(**fields)) == expected
