"""Erasing sessions for good.

The fact is committed first: from then on nobody writes to the session, and whoever finds
the work half done finishes it. Then the key is destroyed, which makes what the log, copies
and backups hold unreadable, and then what was made of it is scrubbed.

A fork that is made at the same moment doesn't outlive what it goes on from: if it is
committed before the erasure, the erasure finds it when it looks again; if after, its maker
does, since it looks at its origin again. One whose maker died in between is swept.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog

from mesh import failpoints
from mesh.cache.cache import Cache
from mesh.cache.entries import session_tag
from mesh.call import current_call
from mesh.clock import NANOSECONDS, Clock
from mesh.errors import (
    Conflict,
    DataErased,
    FailedPrecondition,
    LimitExceeded,
    NotFound,
    RequestIdReused,
    WeftError,
)
from mesh.events.aggregate import CONFLICTS_MAX, Repository
from mesh.events.store import CommitDraft, HeadConflict, NewEvent, StreamName
from mesh.events.tokens import TokenStream
from mesh.ids import new_id
from mesh.runtime.requests import request_hash
from mesh.security.keyring import Keyring
from services.state import domain
from services.state.read_model import Erasure, SessionsReadModel, erases
from services.state.settings import StateSettings
from weft.state.v1 import session_pb2, session_service_pb2

ERASED_MAX = 10_000
"""Most sessions that one request erases, as the contract has it."""
NAMED_FORKS_MAX = 5

_log = structlog.get_logger(__name__)


class Erasures:
    """Erases sessions, and finishes what was begun."""

    def __init__(
        self,
        repository: Repository[session_pb2.SessionState],
        read_model: SessionsReadModel,
        keyring: Keyring,
        tokens: TokenStream,
        cache: Cache,
    ) -> None:
        self._repository = repository
        self._read_model = read_model
        self._keyring = keyring
        self._tokens = tokens
        self._cache = cache
        self._running: set[asyncio.Task[list[str]]] = set()

    async def stop(self) -> None:
        """Ends what is under way: it is finished at the next start."""
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running)

    async def erase(self, request: session_service_pb2.EraseSessionRequest) -> list[str]:
        """Erases the session, with its forks where `cascade` says so; returns the names of
        all that this request erased, forks first. It goes on where its caller goes away.

        Raises FailedPrecondition while a turn is open or a fork lives, DataErased where
        another request erased it, RequestIdReused, NotFound, LimitExceeded.
        """
        task = asyncio.create_task(self._answer(request))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def _answer(self, request: session_service_pb2.EraseSessionRequest) -> list[str]:
        digest = request_hash(request)
        erasure = Erasure(request.name, request.request_id or new_id(), digest)
        forks = await self._checked_forks(request, erasure)
        for fork in forks:
            await self._erase(Erasure(fork, erasure.request_id, digest))
        await self._erase(erasure)
        await self._read_model.catch_up()
        return self._read_model.erased_by(erasure, ERASED_MAX)

    async def follow_origin(self, fork: str, origin: str) -> None:
        """Raises DataErased where the origin of a fork that was just made is erased by now,
        and erases the fork."""
        try:
            state = await self._repository.open(domain.session_stream(origin)).load()
            domain.refuse_absent(state)
        except NotFound:
            await self._erase(Erasure(fork, new_id(), b""))
            # Whoever is told so doesn't find it in a list any more.
            await self._read_model.catch_up()
            raise

    async def finish(self) -> None:
        """Finishes erasures that a crash or an outage interrupted."""
        await self._read_model.catch_up()
        for erasure in self._read_model.unfinished():
            _log.info("an erasure is finished", session=erasure.session)
            await self._erase(erasure)

    async def sweep(self, stalled_before_ns: int) -> None:
        """Erases forks whose origin is erased, and imports that are broken."""
        await self._read_model.catch_up()
        for fork, erasure in self._read_model.orphans():
            _log.warning("a fork of an erased session is erased", session=fork)
            await self._erase(Erasure(fork, erasure.request_id, erasure.request_hash))
        for session in self._read_model.stalled_imports(stalled_before_ns):
            _log.warning("a broken import is erased", session=session)
            await self._erase(Erasure(session, new_id(), b""))

    async def _checked_forks(
        self, request: session_service_pb2.EraseSessionRequest, erasure: Erasure
    ) -> list[str]:
        """The forks to erase first; none where the same request erased the session before."""
        seen: list[str] | None = None
        while True:
            await self._read_model.catch_up()
            known = self._read_model.erasure(request.name)
            if known is not None:
                _refuse_other(known, erasure)
                return []
            forks = self._read_model.forks(request.name, ERASED_MAX)
            try:
                await self._check(request, forks)
            except (DataErased, NotFound):
                # The same request may have come twice at once: what the other attempt erased
                # meanwhile isn't looked at again.
                if seen is not None and len(forks) >= len(seen):
                    raise
                seen = forks
            else:
                return forks

    async def _check(
        self, request: session_service_pb2.EraseSessionRequest, forks: list[str]
    ) -> None:
        if forks and not request.cascade:
            named = ", ".join(forks[-NAMED_FORKS_MAX:])
            more = f" and {len(forks) - NAMED_FORKS_MAX} more" * (len(forks) > NAMED_FORKS_MAX)
            raise FailedPrecondition(
                f"session {request.name} has forks, which hold its events: {named}{more};"
                " erase them first, or all at once with cascade",
                metadata={"resource": request.name, "fork_count": str(len(forks))},
            )
        if len(forks) >= ERASED_MAX:
            raise LimitExceeded(f"one request erases at most {ERASED_MAX} sessions")
        # Before the first is erased, whether all can be.
        for session in (*forks, request.name):
            state = (await self._repository.load(domain.session_stream(session))).state
            domain.refuse_absent(state)
            domain.decide(state, domain.EraseSession(session, "", b""))

    async def _erase(self, erasure: Erasure) -> None:
        """One session, whatever of it is done already."""
        stream = domain.session_stream(erasure.session)
        command = domain.EraseSession(erasure.session, erasure.request_id, erasure.request_hash)
        try:
            await self._repository.open(stream).execute(
                lambda state: domain.decide(state, command), erasure.request_id
            )
        except DataErased:
            # It was erased before, or goes on from a session that was.
            await self._commit_unread(stream, command)
        failpoints.failpoint("erase:committed")
        await self._keyring.erase(str(stream))
        self._repository.forget(stream)
        failpoints.failpoint("erase:key_destroyed")
        await self._read_model.catch_up()
        for late in self._read_model.forks(erasure.session, ERASED_MAX):
            await self._erase(Erasure(late, erasure.request_id, erasure.request_hash))
        await self._repository.store.scrub(stream)
        await self._tokens.forget(stream)
        await self._cache.invalidate(stream.tenant, [session_tag(erasure.session)])
        self._read_model.finish(erasure.session)

    async def _commit_unread(self, stream: StreamName, command: domain.EraseSession) -> None:
        """Commits the fact behind whatever the stream holds, unless it is there."""
        store, call = self._repository.store, current_call.get()
        (fact,) = domain.decide(session_pb2.SessionState(revision=1), command)
        for _ in range(CONFLICTS_MAX):
            last = None
            async for page in store.read(stream):
                last = page[-1]
            if last is None or erases(last):
                return
            draft = CommitDraft(
                [NewEvent(fact)],
                self._repository.clock.now_ns(),
                call.actor if call else "system",
                command.request_id,
            )
            try:
                await store.append(stream, draft, last.head)
            except HeadConflict:
                continue
            return
        raise Conflict(f"{stream}: {CONFLICTS_MAX} other commits came first")


class Sweeper:
    """Finishes erasures and sweeps, at the start and from time to time."""

    def __init__(self, erasures: Erasures, settings: StateSettings, clock: Clock) -> None:
        self._erasures = erasures
        self._settings = settings
        self._clock = clock
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins."""
        self._task = asyncio.create_task(self._run(), name="session sweeper")

    async def stop(self) -> None:
        """Ends sweeping, and erasing: what is half done is finished at the next start."""
        await self._erasures.stop()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            await self._attempt(self._erasures.finish)
            await self._attempt(self._sweep)
            await asyncio.sleep(self._settings.sweep_interval_seconds)

    async def _sweep(self) -> None:
        stalled_ns = int(self._settings.import_stall_seconds * NANOSECONDS)
        await self._erasures.sweep(self._clock.now_ns() - stalled_ns)

    async def _attempt(self, work: Callable[[], Awaitable[None]]) -> None:
        """What fails is tried again in the next pass, and keeps nothing else from it."""
        try:
            await work()
        except WeftError as error:
            _log.warning("sessions weren't swept", error=error.message)
        except Exception:  # noqa: BLE001 - one session's fault mustn't end the sweeping of all
            _log.exception("sessions weren't swept")


def _refuse_other(known: Erasure, asked: Erasure) -> None:
    """Raises DataErased unless the very request that is asked erased it."""
    if known.request_id != asked.request_id:
        raise DataErased(
            f"session {known.session} was erased", metadata={"resource": known.session}
        )
    if known.request_hash != asked.request_hash:
        raise RequestIdReused(f"request_id {asked.request_id} came before with another body")
