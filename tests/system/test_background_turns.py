"""Turns that run in the background, through the scheduler: stored, run once, steered, and
refused where they don't belong."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration

from mesh.ids import new_id
from tests.support.batches import Batches
from tests.support.plans import plan, writing
from tests.support.platform import TENANT, Platform, platform
from tests.support.scheduling import Scheduling, spec
from tests.support.turn_client import events_of, kind_of
from weft.agents.v1 import agent_pb2
from weft.agents.v1 import turn_service_pb2 as pb
from weft.scheduler.v1 import batches_pb2, schedules_pb2, tasks_pb2
from weft.scheduler.v1 import queue_service_pb2 as queue_pb
from weft.scheduler.v1 import schedule_service_pb2 as schedule_pb
from weft.scheduler.v1 import task_service_pb2 as task_pb
from weft.scheduler.v1 import worker_service_pb2 as worker_pb
from weft.scheduler.v1.schedule_service_pb2_grpc import ScheduleServiceStub
from weft.state.v1 import session_pb2
from weft.state.v1 import session_service_pb2 as session_pb
from weft.state.v1.session_service_pb2_grpc import SessionServiceStub

pytestmark = pytest.mark.timeout(120)

QUEUE = f"{TENANT}/queues/turns"
SUM = {"calls": [{"tool": "calculator", "arguments": {"expression": "6 * 7"}}]}
SECONDS = 30.0
DONE = session_pb2.TURN_STATUS_COMPLETED


@pytest.fixture
async def weft(tmp_path: Path) -> AsyncIterator[Platform]:
    """One slot for turns, so that what takes it is seen."""
    async with platform(tmp_path / "data", WEFT_AGENTS_BACKGROUND_TURNS_MAX="1") as running:
        yield running


async def new_session(
    running: Platform,
    policy: "session_pb2.SubmitPolicy.ValueType" = session_pb2.SUBMIT_POLICY_REJECT,
    *,
    approved: bool = False,
) -> str:
    binding = agent_pb2.ToolBinding(tool="calculator", requires_approval=approved)
    agent = await running.apply(f"bot-{new_id()}", agent_pb2.AgentSpec(tools=[binding]))
    return await running.session(agent, policy)


async def submit(
    running: Platform, session: str, question: str, **fields: object
) -> pb.SubmitTurnResponse:
    request = pb.SubmitTurnRequest(session=session, input=question, **fields)  # type: ignore[arg-type]
    return await running.turns.SubmitTurn(request, timeout=SECONDS)


async def status_of(running: Platform, turn: str) -> int:
    return (await running.turns.GetTurn(pb.GetTurnRequest(name=turn))).turn.status


async def until_status(running: Platform, turn: str, status: int) -> None:
    for _ in range(int(SECONDS / 0.02)):
        if await status_of(running, turn) == status:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{turn} doesn't stand there")


async def pause(running: Platform) -> None:
    """No background turn begins from here on."""
    queues = Scheduling(running).queues
    await queues.CreateQueue(queue_pb.CreateQueueRequest(parent=TENANT, queue_id="turns"))
    await queues.PauseQueue(queue_pb.PauseQueueRequest(name=QUEUE))


async def resume(running: Platform) -> None:
    await Scheduling(running).queues.ResumeQueue(queue_pb.ResumeQueueRequest(name=QUEUE))


def told(task: tasks_pb2.Task) -> dict[str, str]:
    """The result of a task."""
    found: dict[str, str] = json.loads(task.result)
    return found


async def test_a_submitted_turn_is_run_and_watched_by_its_name(weft: Platform) -> None:
    session = await new_session(weft)
    question = plan(SUM, writing(seconds=0.2))
    sent = await submit(weft, session, question, request_id="r1", priority=7)
    assert sent.turn.rpartition("/")[2] == sent.task.rpartition("/")[2]
    assert sent.task.startswith(f"{QUEUE}/tasks/")
    assert await submit(weft, session, question, request_id="r1", priority=7) == sent
    events = await events_of(weft, sent.turn)
    assert [kind_of(event) for event in events if not event.HasField("token")] == [
        *("accepted", "model_step", "tool_call", "tool_result", "model_step", "completed")
    ]
    task = await Scheduling(weft, QUEUE).done(sent.task)
    assert told(task) == {"turn": sent.turn, "status": "TURN_STATUS_COMPLETED"}
    assert (task.spec.capability, task.spec.priority) == ("agent-turn", 7)
    assert task.creator.startswith(f"{TENANT}/apiKeys/")
    assert await submit(weft, session, question, request_id="r1", priority=7) == sent
    found = (await weft.turns.GetTurn(pb.GetTurnRequest(name=sent.turn))).turn
    assert (found.status, found.request_id) == (DONE, "r1")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await submit(weft, session, "another question", request_id="r1")
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_turn_that_waits_for_its_slot_is_seen_watched_and_cancelled(weft: Platform) -> None:
    await pause(weft)
    one, two = [await new_session(weft) for _ in range(2)]
    first = await submit(weft, one, plan(SUM, {"text": "42"}))
    second = await submit(weft, two, plan({"text": "never"}))
    found = (await weft.turns.GetTurn(pb.GetTurnRequest(name=first.turn))).turn
    assert (found.name, found.status) == (first.turn, session_pb2.TURN_STATUS_QUEUED)
    assert found.input == plan(SUM, {"text": "42"})
    watched = asyncio.create_task(events_of(weft, first.turn))
    cancel = pb.CancelTurnRequest(name=second.turn, reason="not needed")
    cancelled = (await weft.turns.CancelTurn(cancel)).turn
    assert cancelled.status == session_pb2.TURN_STATUS_CANCELLED
    await resume(weft)
    assert kind_of((await watched)[-1]) == "completed"
    assert await status_of(weft, second.turn) == session_pb2.TURN_STATUS_CANCELLED
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await events_of(weft, second.turn)
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "not needed" in (refused.value.details() or "")


async def test_a_turn_that_waits_for_a_person_holds_no_slot(weft: Platform) -> None:
    careful = await new_session(weft, approved=True)
    asks = await submit(weft, careful, plan(SUM, {"text": "approved"}))
    task = await Scheduling(weft, QUEUE).done(asks.task)
    assert told(task)["status"] == "TURN_STATUS_WAITING_APPROVAL"
    other = await submit(weft, await new_session(weft), plan({"text": "meanwhile"}))
    await Scheduling(weft, QUEUE).done(other.task)
    assert await status_of(weft, other.turn) == DONE
    waiting = (await weft.turns.GetTurn(pb.GetTurnRequest(name=asks.turn))).turn
    decide = pb.DecideApprovalRequest(
        name=asks.turn, call_id=waiting.waiting_calls[0].call.id, approved=True
    )
    await weft.turns.DecideApproval(decide)
    assert kind_of((await events_of(weft, asks.turn))[-1]) == "completed"


async def test_what_a_session_does_with_another_turn_is_its_policy(weft: Platform) -> None:
    queue = Scheduling(weft, QUEUE)
    rejects = await new_session(weft)
    busy = await submit(weft, rejects, plan(writing(seconds=1)))
    await until_status(weft, busy.turn, session_pb2.TURN_STATUS_RUNNING)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await submit(weft, rejects, plan({"text": "too much"}))
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    await queue.done(busy.task)

    # One that waits for a person is in the way for long: what waits behind it holds no slot.
    enqueues = await new_session(weft, session_pb2.SUBMIT_POLICY_ENQUEUE, approved=True)
    asks = await submit(weft, enqueues, plan(SUM, {"text": "first"}))
    await queue.done(asks.task)
    behind = await submit(weft, enqueues, plan({"text": "second"}))
    assert told(await queue.done(behind.task))["status"] == "TURN_STATUS_QUEUED"
    await weft.turns.CancelTurn(pb.CancelTurnRequest(name=asks.turn))
    await until_status(weft, behind.turn, DONE)

    interrupts = await new_session(weft, session_pb2.SUBMIT_POLICY_INTERRUPT, approved=True)
    before = await submit(weft, interrupts, plan(SUM, {"text": "never"}))
    await queue.done(before.task)
    after = await submit(weft, interrupts, plan({"text": "instead"}))
    await queue.done(after.task)
    assert await status_of(weft, before.turn) == session_pb2.TURN_STATUS_CANCELLED
    assert await status_of(weft, after.turn) == DONE


async def test_cancelling_the_task_cancels_the_turn(weft: Platform) -> None:
    sent = await submit(weft, await new_session(weft), plan(writing(seconds=60)))
    await until_status(weft, sent.turn, session_pb2.TURN_STATUS_RUNNING)
    cancel = task_pb.CancelTaskRequest(name=sent.task, reason="too dear")
    await Scheduling(weft).tasks.CancelTask(cancel)
    assert (await events_of(weft, sent.turn))[-1].cancelled.reason == "too dear"
    task = await Scheduling(weft, QUEUE).done(sent.task)
    assert task.state == tasks_pb2.TASK_STATE_CANCELLED


async def test_a_turn_that_fails_fails_its_task_and_isnt_run_again(weft: Platform) -> None:
    slow = plan(writing(seconds=60))
    sent = await submit(weft, await new_session(weft), slow, timeout=Duration(seconds=1))
    task = await Scheduling(weft, QUEUE).done(sent.task)
    assert task.state == tasks_pb2.TASK_STATE_FAILED
    assert len(task.attempts) == 1
    assert await status_of(weft, sent.turn) == session_pb2.TURN_STATUS_FAILED


async def test_a_killed_process_loses_no_turn_and_runs_none_twice(tmp_path: Path) -> None:
    async with platform(tmp_path / "data") as weft:
        sessions = [await new_session(weft) for _ in range(6)]
        question = plan(SUM, writing(seconds=1.5), {"text": "the end"})
        sent = [await submit(weft, each, question, request_id="r") for each in sessions]
        await until_status(weft, sent[0].turn, session_pb2.TURN_STATUS_RUNNING)
        await weft.kill()
        await weft.start()
        for session, one in zip(sessions, sent, strict=True):
            events = await events_of(weft, one.turn)
            kinds = [kind_of(event) for event in events]
            assert kinds[-1] == "completed"
            assert kinds.count("accepted") == kinds.count("completed") == 1
            assert await submit(weft, session, question, request_id="r") == one
        for one in sent:
            task = await Scheduling(weft, QUEUE).done(one.task)
            assert told(task) == {"turn": one.turn, "status": "TURN_STATUS_COMPLETED"}


@pytest.mark.parametrize(
    ("wanted", "code", "said"),
    [
        (spec("echo"), grpc.StatusCode.INVALID_ARGUMENT, "agent-turn only"),
        (spec("agent-turn", b"{"), grpc.StatusCode.INVALID_ARGUMENT, "spec.payload"),
        (spec("agent-turn", b"\xff"), grpc.StatusCode.INVALID_ARGUMENT, "spec.payload"),
        (spec("agent-turn", b"{}"), grpc.StatusCode.INVALID_ARGUMENT, "spec.payload.session"),
        (
            spec("agent-turn", b'{"session": "tenants/other/agents/a/sessions/s", "input": "x"}'),
            grpc.StatusCode.NOT_FOUND,
            "tenants/other/agents/a/sessions/s",
        ),
    ],
    ids=["capability", "no-json", "no-text", "empty", "another-tenant"],
)
async def test_tasks_of_the_queue_are_turns_only(
    tmp_path: Path, wanted: tasks_pb2.TaskSpec, code: grpc.StatusCode, said: str
) -> None:
    async with platform(tmp_path / "data") as weft:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await Scheduling(weft, QUEUE).submit(wanted)
        assert refused.value.code() == code
        assert said in (refused.value.details() or "")


async def test_the_question_of_a_turn_that_waits_is_gone_with_its_session(weft: Platform) -> None:
    await pause(weft)
    session = await new_session(weft)
    sent = await submit(weft, session, "what nobody shall know")
    queue = Scheduling(weft, QUEUE)
    assert b"nobody" not in (await queue.get(sent.task)).spec.payload
    sessions = SessionServiceStub(weft.open_channel)
    await sessions.EraseSession(session_pb.EraseSessionRequest(name=session))
    await resume(weft)
    assert (await queue.done(sent.task)).state == tasks_pb2.TASK_STATE_FAILED
    with pytest.raises(grpc.aio.AioRpcError) as absent:
        await status_of(weft, sent.turn)
    assert absent.value.code() == grpc.StatusCode.NOT_FOUND


async def test_a_turn_may_be_submitted_as_a_task(weft: Platform) -> None:
    session = await new_session(weft)
    payload = json.dumps({"session": session, "input": plan({"text": "42"})}).encode()
    queue = Scheduling(weft, QUEUE)
    task = await queue.done((await queue.submit(spec("agent-turn", payload))).name)
    assert await status_of(weft, told(task)["turn"]) == DONE


async def test_a_turn_of_no_session_is_refused_as_a_task_and_in_a_batch(weft: Platform) -> None:
    session = await new_session(weft)
    queue = Scheduling(weft, QUEUE)
    asked = {"session": f"{session}x", "input": plan({"text": "42"})}
    absent = spec("agent-turn", json.dumps(asked).encode())
    there = spec("agent-turn", json.dumps({**asked, "session": session}).encode())
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await queue.submit(absent)
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND
    assert refused.value.details() == f"no session {session}x"
    items = [batches_pb2.BatchItem(spec=each) for each in (absent, there, absent)]
    answer = await Batches(queue).submit("turns", items)
    assert [(each.index, each.code) for each in answer.errors] == [(0, 5), (2, 5)]
    assert answer.batch.counts.items == 1


async def test_a_schedule_runs_turns_that_its_maker_may_run(weft: Platform) -> None:
    stub: Any = ScheduleServiceStub(weft.open_channel)
    session = await new_session(weft)
    payload = json.dumps({"session": session, "input": plan({"text": "42"})}).encode()
    task = tasks_pb2.TaskSpec(capability="agent-turn", payload=payload)
    wanted = schedules_pb2.ScheduleSpec(interval=Duration(seconds=3600), queue=QUEUE, task=task)
    create = schedule_pb.CreateScheduleRequest(parent=TENANT, schedule_id="hourly", spec=wanted)
    made = (await stub.CreateSchedule(create)).schedule
    trigger = schedule_pb.TriggerScheduleRequest(name=made.name)
    triggered = (await stub.TriggerSchedule(trigger)).task
    done = await Scheduling(weft, QUEUE).done(triggered.name)
    assert done.creator == made.name
    assert await status_of(weft, told(done)["turn"]) == DONE
    create.schedule_id = "theirs"
    update = schedule_pb.UpdateScheduleRequest(name=made.name, spec=wanted)
    for other in ("tenants/other/agents/a/sessions/s", f"{session}x"):
        create.spec.task.payload = json.dumps({"session": other, "input": "x"}).encode()
        update.spec.CopyFrom(create.spec)
        for call in (stub.CreateSchedule(create), stub.UpdateSchedule(update)):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            assert refused.value.code() == grpc.StatusCode.NOT_FOUND
            assert refused.value.details() == f"no session {other}"


async def test_nobody_else_serves_the_queue(weft: Platform) -> None:
    hello = worker_pb.WorkerHello(capabilities=["agent-turn"], slots=1)
    workers = Scheduling(weft).workers
    for stream in (
        workers.Attach(iter([worker_pb.AttachRequest(queue=QUEUE, hello=hello)])),
        workers.AttachShared(iter([worker_pb.AttachSharedRequest(queue_id="turns", hello=hello)])),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stream.read()
        assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED


async def test_what_cant_be_submitted_is_said_at_once(weft: Platform) -> None:
    session = await new_session(weft)
    agent = session.partition("/sessions/")[0]
    for wanted, code in (
        (pb.SubmitTurnRequest(session=f"{agent}/sessions/none", input="x"), "NOT_FOUND"),
        (pb.SubmitTurnRequest(session=session), "INVALID_ARGUMENT"),
        (pb.SubmitTurnRequest(session=session, input="ü" * 95_001), "INVALID_ARGUMENT"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await weft.turns.SubmitTurn(wanted)
        assert refused.value.code().name == code
    long = await submit(weft, session, "ü" * 95_000)
    assert await status_of(weft, long.turn)
    with pytest.raises(grpc.aio.AioRpcError) as absent:
        await status_of(weft, f"{session}/turns/none")
    assert absent.value.code() == grpc.StatusCode.NOT_FOUND
