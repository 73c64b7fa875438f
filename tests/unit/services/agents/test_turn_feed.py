"""Who watches a turn gets its events as they come; its tokens come in few messages."""

import asyncio

from services.agents.feed import TOGETHER_BYTES_MAX, TurnFeed
from services.state import domain
from tests.support.session_log import READ, SESSION, SessionLog, planned, timestamp
from tests.unit.services.agents.turn_script import TURN, Events, events_behind
from weft.agents.v1 import turn_pb2
from weft.errors.v1 import errors_pb2
from weft.models.v1 import models_pb2
from weft.state.v1 import events_pb2
from weft.tools.v1 import tools_pb2

BEGINNING = turn_pb2.TurnOffset()
NOW = timestamp(1)
SECONDS_MAX = 10.0


def accepted_log() -> SessionLog:
    log = SessionLog()
    log.create()
    log.accept(TURN)
    return log


def fed(log: SessionLog) -> TurnFeed:
    feed = TurnFeed(SESSION, TURN)
    for place, fact in log.facts:
        feed.fact(place.revision, place.time, fact)
    return feed


def kinds(events: Events) -> list[str | None]:
    return [event.WhichOneof("event") for event in events]


class TestTranslation:
    async def test_a_step_is_followed_by_the_calls_that_may_run(self) -> None:
        log = accepted_log()
        log.step(planned("a"), planned("b", READ, requires_approval=True))
        log.approve("b")
        assert kinds(await events_behind(fed(log), BEGINNING)) == [
            "accepted",
            "model_step",
            "tool_call",
            "approval_required",
            "approval_given",
            "tool_call",
        ]

    async def test_a_denied_call_is_not_announced_as_made(self) -> None:
        log = accepted_log()
        log.step(planned("b", READ, requires_approval=True))
        log.approve("b", approved=False)
        assert kinds(await events_behind(fed(log), BEGINNING))[-1] == "approval_given"

    async def test_the_end_tells_what_the_turn_used_and_where_its_answer_is_from(self) -> None:
        log = accepted_log()
        log.step(planned("a"))
        source = tools_pb2.Source(uri="file:notes.md")
        for call_id in "ab":
            if call_id == "b":
                log.step(planned("b"))
            completed = events_pb2.ToolCallCompleted(turn=TURN, call_id=call_id, sources=[source])
            feed_result(log, completed)
        log.step(text="so")
        end = (await events_behind(fed(log), BEGINNING))[-1].completed
        assert end.text == "so"
        assert end.usage == models_pb2.Usage(input_tokens=30, output_tokens=15)
        assert list(end.sources) == [source]

    async def test_a_failure_says_why(self) -> None:
        log = accepted_log()
        log.resume("two", resumes_max=0)
        error = (await events_behind(fed(log), BEGINNING))[-1].failed.error
        assert error.reason == errors_pb2.REASON_LIMIT_EXCEEDED
        assert "died" in error.message

    async def test_another_turns_facts_lead_to_nothing(self) -> None:
        log = accepted_log()
        log.step(text="so")
        log.accept("t2")
        log.step(text="and so")
        assert kinds(await events_behind(fed(log), BEGINNING)) == [
            "accepted",
            "token",
            "model_step",
            "completed",
        ]


def feed_result(log: SessionLog, completed: events_pb2.ToolCallCompleted) -> None:
    log.do(domain.CompleteCalls(log.active.id, log.active.epoch, [completed]))


class TestFollowing:
    async def test_a_fact_that_comes_twice_is_shown_once(self) -> None:
        log = accepted_log()
        feed = fed(log)
        for place, fact in log.facts:
            feed.fact(place.revision, place.time, fact)
        assert kinds(await events_behind(feed, BEGINNING)) == ["accepted"]

    async def test_a_message_ends_before_it_is_too_large_for_a_client(self) -> None:
        log = accepted_log()
        log.step(text="x" * 900_000)
        feed = fed(log)
        messages = [message async for message in feed.follow(BEGINNING, lambda: True)]
        assert [kinds(message) for message in messages] == [
            ["accepted", "token", "model_step"],
            ["completed"],
        ]

    async def test_an_event_too_large_for_a_message_comes_alone(self) -> None:
        log = accepted_log()
        log.step(text="x" * (TOGETHER_BYTES_MAX + 1))
        feed = fed(log)
        messages = [message async for message in feed.follow(BEGINNING, lambda: True)]
        assert [len(message) for message in messages] == [1, 1, 1, 1]

    async def test_what_comes_while_the_past_is_read_is_shown_behind_it(self) -> None:
        log = accepted_log()
        log.step(text="so")
        feed = TurnFeed(SESSION, TURN)
        feed.hold()
        place, fact = log.facts[-1]
        feed.fact(place.revision, place.time, fact)
        assert await events_behind(feed, BEGINNING) == []
        feed.release([(place.revision, place.time, fact) for place, fact in log.facts])
        assert kinds(await events_behind(feed, BEGINNING))[-1] == "completed"

    async def test_watchers_get_what_comes_until_the_turn_ends(self) -> None:
        log = accepted_log()
        feed = fed(log)
        watchers = [asyncio.create_task(everything(feed)) for _ in range(3)]
        await asyncio.sleep(0)
        feed.token("so", NOW)
        log.step(text="so")
        for place, fact in log.facts[-2:]:
            feed.fact(place.revision, place.time, fact)
        seen = await asyncio.wait_for(asyncio.gather(*watchers), SECONDS_MAX)
        assert [kinds(each) for each in seen] == [
            ["accepted", "token", "model_step", "completed"]
        ] * 3

    async def test_watchers_are_let_go_when_the_process_stops(self) -> None:
        feed = fed(accepted_log())
        watcher = asyncio.create_task(everything(feed))
        await asyncio.sleep(0)
        feed.close()
        assert kinds(await asyncio.wait_for(watcher, SECONDS_MAX)) == ["accepted"]


async def everything(feed: TurnFeed) -> Events:
    return [event async for events in feed.follow(BEGINNING, lambda: False) for event in events]


class TestRemoteTokens:
    def token(self, feed: TurnFeed, text: str, text_offset: int) -> turn_pb2.TurnEvent:
        """What another process that has the same facts as `feed` sends."""
        translator = feed.translator
        token = turn_pb2.TurnEvent.Token(
            step=translator.step, attempt=translator.attempt, text_offset=text_offset, text=text
        )
        revision, part = translator.behind
        offset = turn_pb2.TurnOffset(revision=revision, part=part)
        return turn_pb2.TurnEvent(offset=offset, time=NOW, token=token)

    async def test_they_are_shown_where_they_follow_and_the_step_brings_the_rest(self) -> None:
        log = accepted_log()
        feed = fed(log)
        feed.remote_token(self.token(feed, "so ", 0))
        feed.remote_token(self.token(feed, "it", 5))
        feed.remote_token(self.token(feed, "so ", 0))
        log.step(text="so be it")
        for place, fact in log.facts[-2:]:
            feed.fact(place.revision, place.time, fact)
        events = await events_behind(feed, BEGINNING)
        assert [e.token.text for e in events if e.HasField("token")] == ["so ", "be it"]

    async def test_those_ahead_of_the_facts_wait_for_them(self) -> None:
        log = accepted_log()
        feed = fed(log)
        known = len(log.facts)
        log.step(planned("a"), planned("b"))
        log.complete("a")
        log.complete("b")
        there = fed(log)
        for text, text_offset in (("so ", 0), ("be it", 3)):
            feed.remote_token(self.token(there, text, text_offset))
        for place, fact in log.facts[known:]:
            feed.fact(place.revision, place.time, fact)
        shown = await events_behind(feed, BEGINNING)
        assert kinds(shown[:-2]) == kinds(await events_behind(there, BEGINNING))
        assert [event.token.text for event in shown[-2:]] == ["so ", "be it"]

    async def test_those_of_another_attempt_or_behind_the_end_are_not_shown(self) -> None:
        log = accepted_log()
        feed = fed(log)
        late = self.token(feed, "late", 0)
        log.cancel(TURN)
        log.finish_cancel()
        for place, fact in log.facts[-2:]:
            feed.fact(place.revision, place.time, fact)
        feed.remote_token(late)
        feed.remote_token(self.token(feed, "late", 0))
        assert kinds(await events_behind(feed, BEGINNING)) == [
            "accepted",
            "cancel_requested",
            "cancelled",
        ]
