"""Calls of one session, and of one queue, say which they are of."""

from typing import Any

import pytest

from mesh.rpc.affinity import affinity_of
from mesh.rpc.methods import method_of
from weft.agents.v1 import agent_service_pb2, turn_service_pb2
from weft.scheduler.v1 import queue_service_pb2, task_service_pb2
from weft.state.v1 import session_service_pb2
from weft.vectors.v1 import vector_service_pb2

SESSION = "tenants/acme/agents/bot/sessions/talk"


@pytest.mark.parametrize(
    ("path", "request_", "metadata"),
    [
        (
            "/weft.state.v1.SessionService/GetSession",
            session_service_pb2.GetSessionRequest(name=SESSION),
            (("x-weft-session", SESSION),),
        ),
        (
            "/weft.agents.v1.TurnService/RunTurn",
            turn_service_pb2.RunTurnRequest(session=SESSION),
            (("x-weft-session", SESSION),),
        ),
        (
            "/weft.agents.v1.TurnService/GetTurn",
            turn_service_pb2.GetTurnRequest(name=f"{SESSION}/turns/first"),
            (("x-weft-session", SESSION),),
        ),
        (
            "/weft.agents.v1.AgentService/GetAgent",
            agent_service_pb2.GetAgentRequest(name="tenants/acme/agents/bot"),
            (),
        ),
        (
            "/weft.scheduler.v1.QueueService/GetQueue",
            queue_service_pb2.GetQueueRequest(name="tenants/acme/queues/images"),
            (("x-weft-queue", "tenants/acme/queues/images"),),
        ),
        (
            "/weft.scheduler.v1.TaskService/GetTask",
            task_service_pb2.GetTaskRequest(name="tenants/acme/queues/images/tasks/t-1"),
            (("x-weft-queue", "tenants/acme/queues/images"),),
        ),
        (
            "/weft.vectors.v1.VectorService/GetCollection",
            vector_service_pb2.GetCollectionRequest(name="tenants/acme/collections/docs"),
            (),
        ),
        (
            "/weft.state.v1.SessionService/GetSession",
            session_service_pb2.GetSessionRequest(name="no\nname"),
            (),
        ),
    ],
)
def test_a_request_names_what_it_should_stay_with(
    path: str, request_: Any, metadata: tuple[tuple[str, str], ...]
) -> None:
    assert affinity_of(method_of(path), None)(request_) == metadata


def test_a_clients_stream_may_go_anywhere() -> None:
    assert affinity_of(method_of("/weft.state.v1.SessionService/ImportSession"), None)(None) == ()
