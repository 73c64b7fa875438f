"""The feeds of the turns that this process works on or that somebody watches here."""

import asyncio

from mesh.events.aggregate import Aggregate, Repository
from mesh.events.store import StreamName
from services.agents.feed import TurnFeed
from services.agents.history import facts_of
from services.state.domain import session_name
from weft.state.v1 import session_pb2

Session = Aggregate[session_pb2.SessionState]


class TurnFeeds:
    """One feed of a turn, for as long as anybody uses it; it keeps its session loaded."""

    def __init__(self, sessions: Repository[session_pb2.SessionState]) -> None:
        self._sessions = sessions
        self._feeds: dict[tuple[str, str], TurnFeed] = {}

    def begin(self, session: Session, turn: str) -> TurnFeed:
        """The feed of a turn of which nothing is stored yet; to be released."""
        feed = TurnFeed(session_name(session.stream), turn)
        feed.users = 1
        session.pins += 1
        session.observers.append(feed.fact)
        self._feeds[str(session.stream), turn] = feed
        return feed

    async def attach(self, session: Session, turn: str) -> TurnFeed:
        """The turn's feed, to be released; one that is new here begins with what the log
        has. Raises EventStoreUnavailable."""
        feed = self._feeds.get((str(session.stream), turn))
        if feed is None:
            feed = self.begin(session, turn)
            feed.hold()
            feed.filling = asyncio.create_task(self._fill(session, feed))
        else:
            feed.users += 1
        if feed.filling is not None:
            try:
                await asyncio.shield(feed.filling)
            except BaseException:
                self.release(session, feed)
                raise
        return feed

    def release(self, session: Session, feed: TurnFeed) -> None:
        """Says that one of its users is done with it."""
        feed.users -= 1
        if feed.users == 0:
            session.pins -= 1
            session.observers.remove(feed.fact)
            del self._feeds[str(session.stream), feed.turn]

    def forget(self, stream: StreamName) -> None:
        """Drops what is held of the turns of an erased session."""
        for (session, _), feed in self._feeds.items():
            if session == str(stream):
                feed.drop()

    def close(self) -> None:
        """This process stops: nothing more comes in any feed."""
        for feed in self._feeds.values():
            feed.close()

    async def _fill(self, session: Session, feed: TurnFeed) -> None:
        feed.release([fact async for fact in facts_of(self._sessions, session.stream)])
