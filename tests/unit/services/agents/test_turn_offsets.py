"""Whoever watched a turn and comes back gets the rest of it: nothing missing, nothing twice."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from services.agents.events import ENDS
from tests.unit.services.agents.turn_script import (
    TurnScript,
    events_behind,
    facts_of,
    played,
    texts_of,
)
from weft.agents.v1 import turn_pb2

SCRIPTS = st.builds(played, st.integers(0, 100_000))
BEGINNING = turn_pb2.TurnOffset()


@settings(max_examples=60)
@given(script=SCRIPTS)
async def test_offsets_grow(script: TurnScript) -> None:
    events = await events_behind(script.feed, BEGINNING)
    places = [
        (e.offset.revision, e.offset.part, e.offset.attempt, e.offset.text_length) for e in events
    ]
    for before, after in pairwise(places):
        assert before[:2] <= after[:2]
        assert before[:2] < after[:2] or before[3] < after[3]


@settings(max_examples=60)
@given(script=SCRIPTS)
async def test_from_the_offset_of_any_event_the_rest_is_sent(script: TurnScript) -> None:
    events = await events_behind(script.feed, BEGINNING)
    for index, event in enumerate(events, start=1):
        assert await events_behind(script.feed, event.offset) == events[index:]


@settings(max_examples=60)
@given(script=SCRIPTS, data=st.data())
async def test_from_within_a_token_its_rest_is_sent(
    script: TurnScript, data: st.DataObject
) -> None:
    events = await events_behind(script.feed, BEGINNING)
    tokens = [i for i, e in enumerate(events) if e.HasField("token") and len(e.token.text) > 1]
    for index in tokens:
        event = events[index]
        kept = data.draw(st.integers(1, len(event.token.text) - 1))
        offset = turn_pb2.TurnOffset()
        offset.CopyFrom(event.offset)
        offset.text_length = event.token.text_offset + kept

        first, *rest = await events_behind(script.feed, offset)

        assert first.token.text == event.token.text[kept:]
        assert first.token.text_offset == offset.text_length
        assert first.offset == event.offset
        assert rest == events[index + 1 :]


@settings(max_examples=60)
@given(script=SCRIPTS)
async def test_another_process_goes_on_from_the_log_alone(script: TurnScript) -> None:
    """Of attempts that were cut off it has no tokens; all else is there once."""
    events = await events_behind(script.feed, BEGINNING)
    rebuilt = script.rebuilt_feed()
    completed = {
        (event.model_step.step, event.offset.attempt): event.model_step.message.text
        for event in events
        if event.HasField("model_step")
    }
    for index in range(len(events) + 1):
        offset = events[index - 1].offset if index else BEGINNING
        stitched = events[:index] + await events_behind(rebuilt, offset)
        assert facts_of(stitched) == facts_of(events)
        texts = texts_of(stitched)
        assert {place: texts.get(place, "") for place in completed} == completed


@settings(max_examples=60)
@given(script=SCRIPTS)
async def test_a_turn_that_is_over_ends_with_how_it_ended(script: TurnScript) -> None:
    events = await events_behind(script.feed, BEGINNING)
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "accepted"
    assert [kind for kind in kinds if kind in ENDS] == kinds[-1:]
    assert await events_behind(script.feed, events[-1].offset) == []
