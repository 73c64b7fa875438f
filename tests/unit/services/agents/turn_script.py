"""A turn that goes any way, with the facts and the tokens that its watchers get."""

import random
from dataclasses import dataclass, field

from services.agents.feed import TurnFeed
from tests.support.session_log import IRREVERSIBLE, READ, SESSION, SessionLog, planned, timestamp
from tests.support.session_walk import WAIT_NS
from weft.agents.v1 import turn_pb2
from weft.state.v1 import events_pb2, session_pb2

TURN = "t1"
Events = list[turn_pb2.TurnEvent]


@dataclass
class TurnScript:
    """Plays a turn to its end; `feed` is that of the process that runs it."""

    choices: random.Random
    log: SessionLog = field(default_factory=SessionLog)
    feed: TurnFeed = field(default_factory=lambda: TurnFeed(SESSION, TURN))
    seen: int = 0

    def play(self) -> None:
        """From the acceptance to the last event."""
        self.log.create(session_pb2.SUBMIT_POLICY_ENQUEUE)
        self.log.accept(TURN, "one")
        if self.choices.random() < 0.3:
            self.log.accept("t2")
        for _ in range(self.choices.randrange(3)):
            self.publish()
            self.step_with_calls()
        self.publish()
        if self.choices.random() < 0.2:
            self.log.cancel(TURN)
            self.write(self.text()[:5])
            self.log.finish_cancel("cut off")
        else:
            text = self.text()
            self.write(text)
            self.log.step(text=text)
        self.publish()

    def publish(self) -> None:
        """Tells the feed of the facts that are new."""
        for place, fact in self.log.facts[self.seen :]:
            self.feed.fact(place.revision, place.time, fact)
        self.seen = len(self.log.facts)

    def text(self) -> str:
        """What the model writes in a step; it may be nothing."""
        return "".join(self.choices.choice("aé日🙂 ") for _ in range(self.choices.randrange(12)))

    def write(self, text: str) -> None:
        """The model writes in parts, perhaps not all; its process may die meanwhile."""
        while self.choices.random() < 0.3:
            self.stream(text[: self.choices.randrange(len(text) + 1)])
            self.log.resume(self.choices.choice(("one", "two")), resumes_max=99)
            self.publish()
        self.stream(text[: self.choices.randrange(len(text) + 1)])

    def stream(self, text: str) -> None:
        while text:
            size = self.choices.randrange(1, len(text) + 1)
            self.feed.token(text[:size], timestamp(self.log.now_ns))
            text = text[size:]

    def step_with_calls(self) -> None:
        text, number = self.text(), len(self.log.facts)
        self.write(text)
        ids = [f"c{number}-{index}" for index in range(3)]
        self.log.step(
            planned(ids[0]),
            planned(ids[1], READ, requires_approval=True),
            planned(ids[2], IRREVERSIBLE),
            text=text,
        )
        self.log.complete(ids[0])
        self.log.start_call(ids[2])
        if self.choices.random() < 0.5:
            self.log.resume("two", resumes_max=99)
            self.log.now_ns += WAIT_NS
            self.log.approve(ids[1], approved=False)
            self.log.resolve(ids[2], events_pb2.RESOLUTION_COMPLETED)
        else:
            self.log.complete(ids[2])
            self.log.approve(ids[1])
            self.log.complete(ids[1])
        self.publish()

    def rebuilt_feed(self) -> TurnFeed:
        """The feed as a process that only has the log makes it."""
        feed = TurnFeed(SESSION, TURN)
        feed.hold()
        feed.release([(place.revision, place.time, fact) for place, fact in self.log.facts])
        return feed


def played(seed: int) -> TurnScript:
    """A turn that is over."""
    script = TurnScript(random.Random(seed))
    script.play()
    return script


async def events_behind(feed: TurnFeed, offset: turn_pb2.TurnOffset) -> Events:
    """What a watcher at `offset` gets of a feed as it is now."""
    return [event async for events in feed.follow(offset, lambda: True) for event in events]


def facts_of(events: Events) -> list[tuple[int, int, str]]:
    """The events that aren't tokens, by place and kind."""
    return [
        (event.offset.revision, event.offset.part, event.WhichOneof("event") or "")
        for event in events
        if not event.HasField("token")
    ]


def texts_of(events: Events) -> dict[tuple[int, int], str]:
    """What the tokens of each attempt at each step say, checked to follow each other."""
    texts: dict[tuple[int, int], str] = {}
    for event in events:
        if event.HasField("token"):
            place = (event.token.step, event.token.attempt)
            before = texts.get(place, "")
            assert event.token.text_offset == len(before)
            texts[place] = before + event.token.text
            assert event.offset.text_length == len(texts[place])
    return texts
