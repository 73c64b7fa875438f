"""The same request, sent to two instances at once: both attempts get one answer."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc.aio
import pytest

from mesh.ids import new_id
from tests.support.platform import TENANT, Platform, two_instances
from weft.agents.v1 import agent_pb2
from weft.agents.v1 import agent_service_pb2 as agent_rpc
from weft.agents.v1.agent_service_pb2_grpc import AgentServiceStub
from weft.auth.v1 import role_service_pb2 as role_rpc
from weft.auth.v1.role_service_pb2_grpc import RoleServiceStub
from weft.scheduler.v1 import queue_service_pb2 as queue_rpc
from weft.scheduler.v1 import task_service_pb2 as task_rpc
from weft.scheduler.v1 import tasks_pb2
from weft.scheduler.v1.queue_service_pb2_grpc import QueueServiceStub
from weft.scheduler.v1.task_service_pb2_grpc import TaskServiceStub
from weft.state.v1 import session_pb2
from weft.state.v1 import session_service_pb2 as session_rpc
from weft.state.v1.session_service_pb2_grpc import SessionServiceStub

PAIRS = 30
SECONDS = 20.0
Pair = tuple[Platform, Platform]
Send = Callable[[Platform], Awaitable[Any]]
Prepare = Callable[[Platform], Awaitable[Send]]


@pytest.fixture(scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    """Two instances."""
    async with two_instances(tmp_path_factory.mktemp("pair")) as both:
        await both[0].apply("bot", agent_pb2.AgentSpec())
        queue = queue_rpc.CreateQueueRequest(parent=TENANT, queue_id="work")
        await QueueServiceStub(both[0].open_channel).CreateQueue(queue, timeout=SECONDS)
        yield both


AGENT = f"{TENANT}/agents/bot"


async def a_session(running: Platform) -> Send:
    request = session_rpc.CreateSessionRequest(parent=AGENT, request_id=new_id())
    return lambda p: SessionServiceStub(p.open_channel).CreateSession(request, timeout=SECONDS)


async def a_named_session(running: Platform) -> Send:
    request = session_rpc.CreateSessionRequest(
        parent=AGENT, session_id=new_id(), request_id=new_id()
    )
    return lambda p: SessionServiceStub(p.open_channel).CreateSession(request, timeout=SECONDS)


async def a_fork(running: Platform) -> Send:
    request = session_rpc.ForkSessionRequest(name=await running.session(AGENT), request_id=new_id())
    return lambda p: SessionServiceStub(p.open_channel).ForkSession(request, timeout=SECONDS)


async def an_erased_session(running: Platform) -> Send:
    request = session_rpc.EraseSessionRequest(
        name=await running.session(AGENT), request_id=new_id()
    )
    return lambda p: SessionServiceStub(p.open_channel).EraseSession(request, timeout=SECONDS)


async def an_erased_session_with_forks(running: Platform) -> Send:
    name = await running.session(AGENT)
    for _ in range(3):
        fork = session_rpc.ForkSessionRequest(name=name)
        await SessionServiceStub(running.open_channel).ForkSession(fork, timeout=SECONDS)
    request = session_rpc.EraseSessionRequest(name=name, cascade=True, request_id=new_id())

    async def erased(running: Platform) -> tuple[int, str]:
        stub = SessionServiceStub(running.open_channel)
        names = (await stub.EraseSession(request, timeout=SECONDS)).erased_sessions
        return len(names), names[-1]

    return erased


async def an_agent(running: Platform) -> Send:
    request = agent_rpc.CreateAgentRequest(
        parent=TENANT, agent_id=new_id(), spec=agent_pb2.AgentSpec(), request_id=new_id()
    )
    return lambda p: AgentServiceStub(p.open_channel).CreateAgent(request, timeout=SECONDS)


async def a_role(running: Platform) -> Send:
    request = role_rpc.CreateRoleRequest(
        parent=TENANT, role_id=new_id(), permissions=["sessions.get"], request_id=new_id()
    )
    return lambda p: RoleServiceStub(p.open_channel).CreateRole(request, timeout=SECONDS)


async def a_queue(running: Platform) -> Send:
    request = queue_rpc.CreateQueueRequest(parent=TENANT, queue_id=new_id())
    return lambda p: QueueServiceStub(p.open_channel).CreateQueue(request, timeout=SECONDS)


async def a_named_task(running: Platform) -> Send:
    request = task_rpc.SubmitTaskRequest(
        parent=f"{TENANT}/queues/work",
        task_id=new_id(),
        spec=tasks_pb2.TaskSpec(capability="echo"),
        request_id=new_id(),
    )

    async def name_of(running: Platform) -> str:
        stub = TaskServiceStub(running.open_channel)
        # When it was made is told by the one clock or the other.
        return (await stub.SubmitTask(request, timeout=SECONDS)).task.name

    return name_of


PREPARE: tuple[Prepare, ...] = (
    a_session,
    a_named_session,
    a_fork,
    an_erased_session,
    an_erased_session_with_forks,
    an_agent,
    a_role,
    a_queue,
    a_named_task,
)


@pytest.mark.parametrize("together", [True, False], ids=["two-instances", "one-instance"])
@pytest.mark.parametrize("prepare", PREPARE, ids=lambda prepare: prepare.__name__)
async def test_both_attempts_get_one_answer(prepare: Prepare, together: bool, pair: Pair) -> None:
    one, two = pair if together else (pair[0], pair[0])
    differing = []
    for number in range(PAIRS):
        send = await prepare(pair[number % 2])
        answers = await asyncio.gather(send(one), send(two), return_exceptions=True)
        if isinstance(answers[0], BaseException) or answers[0] != answers[1]:
            differing.append(answers)
    assert not differing, f"{len(differing)} of {PAIRS}, such as {differing[0]}"


async def test_two_bodies_at_once_under_one_request_id_make_one_session(pair: Pair) -> None:
    for _ in range(PAIRS):
        request_id = new_id()
        requests = [
            session_rpc.CreateSessionRequest(
                parent=AGENT, submit_policy=policy, request_id=request_id
            )
            for policy in (session_pb2.SUBMIT_POLICY_REJECT, session_pb2.SUBMIT_POLICY_ENQUEUE)
        ]
        answers = await asyncio.gather(
            *(
                SessionServiceStub(running.open_channel).CreateSession(request, timeout=SECONDS)
                for running, request in zip(pair, requests, strict=True)
            ),
            return_exceptions=True,
        )
        (refused,) = [each for each in answers if isinstance(each, grpc.aio.AioRpcError)]
        assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "came before with another body" in (refused.details() or "")
