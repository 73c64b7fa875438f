"""One connection to NATS per process, which outlives the servers that it talks to.

Replies of every kind come to one inbox of its own; nats-py's request and JetStream
wrappers cost more than they give here.
"""

import asyncio
import itertools
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import nats.errors
import orjson
import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from mesh.errors import EventStoreUnavailable, FailedPrecondition, LimitExceeded, WeftError
from mesh.events.jetstream.fast_client import (
    Expected,
    FastClient,
    Reply,
    StoredMessage,
    header,
    stored_message,
)
from mesh.ids import new_id

T = TypeVar("T")

JETSTREAM_API = "$JS.API"
PAUSE_SECONDS = 0.05
"""Between two attempts at what NATS couldn't do yet."""
READ_SECONDS_MAX = 10.0
"""Bound on a read with its retries."""
READ_ATTEMPT_SECONDS = 3.0
BATCH_BYTES_MAX = 8_000_000
"""Bound on one answer to a direct get; its last message may pass it."""

_RECONNECT_WAIT_SECONDS = 0.1
_PING_SECONDS = 2
_CANCELS_MAX = 20
_SEED = re.compile(rb"SU[A-Z2-7]{56}")
_VIOLATION = re.compile(r'permissions violation for (publish|subscription) to "([^"]+)"')
_LOGIN_REFUSED = "Authorization Violation"
_UNHEARD_MAX = 1_000
_PENDING_MESSAGES_MAX = 8192
_PENDING_BYTES_MAX = 32_000_000

_log = structlog.get_logger(__name__)


class NotSent(EventStoreUnavailable):
    """NATS did nothing: there is no connection, or nobody answers that subject yet."""


class NotPermitted(EventStoreUnavailable):
    """NATS refuses it for good: our user lacks a right, as where its configuration was written
    by an older version."""

    @classmethod
    def to(cls, verb: str, subject: str) -> "NotPermitted":
        """For what may not be published, or subscribed, to the subject."""
        return cls(
            f"NATS doesn't let its user {verb} to {subject}: where its access.conf is of an"
            " older version of Weft, write it anew with `weft credentials configuration`"
        )


class TooMany(EventStoreUnavailable):
    """NATS doesn't answer with as many messages as that would be."""


class NoReply(EventStoreUnavailable):
    """No answer came in time, or the connection broke: NATS may have done it or not."""


@dataclass(frozen=True, slots=True)
class Batch:
    """An answer to a direct get; `pending` says whether the stream has more than these."""

    messages: list[StoredMessage]
    pending: bool


@dataclass(frozen=True, slots=True)
class BareBatch:
    """As Batch, without headers: only where the last message stands is known."""

    messages: list[bytes]
    pending: bool
    last_position: int


class Connection:
    """See the module; `connect` makes one.

    Whatever talks to NATS raises NotSent or NoReply, or NotPermitted, for which nothing is
    tried again here; all are EventStoreUnavailable.
    """

    def __init__(self, name: str, inbox_prefix: str = "", api_prefix: str = JETSTREAM_API) -> None:
        self._name = name
        self._client = FastClient()
        self._inbox_prefix = inbox_prefix or f"_INBOX_{name}"
        self._inbox = f"{self._inbox_prefix}.{new_id()}"
        self._api_prefix = api_prefix
        self._connected = asyncio.Event()
        self.reconnects = 0
        """How often the connection was lost and is there again."""
        self._tokens = itertools.count(1)
        self._unheard: set[str] = set()
        self.login_refused = False
        """Whether NATS knows its user not, or not by this seed; so far."""
        self._reconnect_callbacks: list[Callable[[], Awaitable[None]]] = []

    async def open(self, url: str, seed_file: Path | None) -> None:
        """Connects, and tries until it is cancelled."""
        await self._client.connect(
            url.split(","),
            name=self._name,
            nkeys_seed=str(seed_file) if seed_file else None,
            inbox_prefix=self._inbox_prefix,
            # By default nats-py closes for good after 60 attempts.
            max_reconnect_attempts=-1,
            reconnect_time_wait=_RECONNECT_WAIT_SECONDS,  # type: ignore[arg-type]
            ping_interval=_PING_SECONDS,
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnect,
            reconnected_cb=self._on_reconnect,
            closed_cb=self._on_close,
        )
        await self._client.subscribe(f"{self._inbox}.*", cb=self._on_late_reply)
        self._connected.set()

    async def close(self) -> None:
        """Ends the connection; what waits for a reply gets NoReply."""
        self._connected.clear()
        self._break()
        await self._client.close()

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as this process can know."""
        return self._connected.is_set()

    async def wait_connected(self, timeout: float) -> None:
        """Returns once there is a connection; NotSent after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._connected.wait()
        except TimeoutError:
            raise NotSent("NATS can't be reached") from None

    def on_reconnect(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Awaits `callback` after each reconnect, in the order in which they were added."""
        self._reconnect_callbacks.append(callback)

    async def publish(
        self, subject: str, data: bytes, headers: Mapping[str, str] | None = None, reply: str = ""
    ) -> None:
        """Sends a message; nothing tells whether it arrived. Headers hold no line breaks.
        LimitExceeded where it is larger than the server takes."""
        if not self._connected.is_set():
            raise NotSent("NATS can't be reached")
        try:
            await self._client.publish(subject, data, reply, dict(headers) if headers else None)
        except (nats.errors.ConnectionClosedError, nats.errors.OutboundBufferLimitError) as error:
            raise NotSent("NATS can't be reached") from error
        except nats.errors.MaxPayloadError as error:
            raise LimitExceeded(f"{len(data)} bytes are too many for a message") from error

    async def request(
        self,
        subject: str,
        data: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        timeout: float,
    ) -> Reply:
        """Sends a message and returns the one reply to it, within `timeout` seconds."""
        reply = await self._ask(subject, data, headers, timeout)
        if reply.status == "503":
            raise NotSent(f"nobody answers {subject}")
        return reply

    async def api(
        self, call: str, request: Mapping[str, Any], *, timeout: float = READ_ATTEMPT_SECONDS
    ) -> dict[str, Any]:
        """The answer of JetStream's API, such as `STREAM.INFO.EVENTS`. One that says no has
        an `error` with `code`, `err_code` and `description`."""
        subject = f"{self._api_prefix}.{call}"
        return answer_of(await self.request(subject, orjson.dumps(request), timeout=timeout))

    async def last_stored(
        self, stream: str, subject: str, *, timeout: float = READ_ATTEMPT_SECONDS
    ) -> bytes | None:
        """Data of the last message that the stream has of the subject, by a direct get;
        None where it has none."""
        call = f"{self._api_prefix}.DIRECT.GET.{stream}.{subject}"
        message = await self.request(call, timeout=timeout)
        return None if message.status else message.data

    async def direct_get(
        self, stream: str, request: Mapping[str, Any], *, timeout: float = READ_ATTEMPT_SECONDS
    ) -> Batch:
        """Messages of a stream, by a batched direct get (NATS ADR-31): `request` has `batch`
        or `multi_last`. On a replicated stream they may lack what was stored just now. TooMany
        where `multi_last` finds more than 1,024."""
        messages: list[StoredMessage] = []

        def take(data: bytes, headers: bytes) -> None:
            messages.append(stored_message(data, headers))

        end = await self._get(stream, request, timeout, take)
        pending = int(header(end.headers, b"\r\nNats-Num-Pending: ") or 0)
        return Batch(messages, pending > 0)

    async def bare_get(
        self, stream: str, request: Mapping[str, Any], *, timeout: float = READ_ATTEMPT_SECONDS
    ) -> BareBatch:
        """As `direct_get`, without headers, which cost as much as the messages."""
        messages: list[bytes] = []

        def take(data: bytes, headers: bytes) -> None:
            messages.append(data)

        end = await self._get(stream, {**request, "no_hdr": True}, timeout, take)
        last = int(header(end.headers, b"\r\nNats-Last-Sequence: ") or 0)
        # The number of pending messages isn't counted down here (nats-server 2.15.1). What
        # is shorter than it may be has reached the end.
        full = sum(map(len, messages)) >= BATCH_BYTES_MAX // 2
        return BareBatch(messages, full or len(messages) >= request["batch"], last)

    async def _get(
        self,
        stream: str,
        request: Mapping[str, Any],
        timeout: float,
        take: Callable[[bytes, bytes], None],
    ) -> Reply:
        asked = orjson.dumps({"max_bytes": BATCH_BYTES_MAX, **request})
        call = f"{self._api_prefix}.DIRECT.GET.{stream}"
        end = await self._ask(call, asked, None, timeout, take)
        if end.status == "503":
            raise NotSent(f"nobody answers for the stream {stream}")
        if end.status == "413":
            raise TooMany(f"the stream {stream} has more than it tells at once")
        if end.status not in ("204", "404"):
            raise NoReply(f"the stream {stream} answered with status {end.status}")
        return end

    async def subscribe(
        self, subject: str, callback: Callable[[Msg], Awaitable[None]]
    ) -> Subscription:
        """Awaits `callback` for each message from now on, also after a reconnect.

        What it is too slow for is dropped, beyond 8,192 messages or 32 MB. NotPermitted where
        our user may not hear it.
        """
        await self.wait_connected(READ_ATTEMPT_SECONDS)
        self._unheard.discard(subject.lower())
        subscription = await self._client.subscribe(
            subject,
            cb=callback,
            pending_msgs_limit=_PENDING_MESSAGES_MAX,
            pending_bytes_limit=_PENDING_BYTES_MAX,
        )
        try:
            # NATS may learn of a subscription only after what is published next, unless flushed.
            await self._client.taken(READ_ATTEMPT_SECONDS)
        except TimeoutError:
            await subscription.unsubscribe()
            raise NoReply("NATS didn't confirm a subscription") from None
        if subject.lower() in self._unheard:
            await subscription.unsubscribe()
            raise NotPermitted.to("subscribe", subject)
        return subscription

    async def follow_stored(
        self, subject: str, callback: Callable[[StoredMessage], None]
    ) -> Subscription:
        """Calls `callback` with each stored message that is republished to `subject` from
        now on, also after a reconnect. Nothing waits: it must be quick."""
        subscription = await self.subscribe(subject, self._on_late_reply)
        self._client.followers[subscription._id] = callback
        return subscription

    async def _ask(
        self,
        subject: str,
        data: bytes,
        headers: Mapping[str, str] | None,
        timeout: float,
        take: Callable[[bytes, bytes], None] | None = None,
    ) -> Reply:
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        inbox = f"{self._inbox}.{next(self._tokens)}"
        key = inbox.encode()
        self._client.expected[key] = Expected(subject, reply, take)
        try:
            async with asyncio.timeout(timeout):
                await self.publish(subject, data, headers, inbox)
                return await reply
        except TimeoutError:
            raise NoReply(f"no answer from NATS within {timeout:g} s") from None
        finally:
            del self._client.expected[key]

    async def _on_late_reply(self, message: Msg) -> None:
        """Nobody waits for it any more, or not yet."""

    def _break(self) -> None:
        self._client.stop_waiting()
        for expected in self._client.expected.values():
            if not expected.reply.done():
                expected.reply.set_exception(NoReply("the connection to NATS broke"))

    async def _on_disconnect(self) -> None:
        if self._connected.is_set():
            _log.warning("nats_disconnected", connection=self._name)
        self._connected.clear()
        self._break()

    async def _on_reconnect(self) -> None:
        _log.info("nats_reconnected", connection=self._name)
        self.reconnects += 1
        self._connected.set()
        self.login_refused = False
        for callback in self._reconnect_callbacks:
            try:
                await callback()
            except WeftError as error:
                _log.warning("nats_reconnect_callback_failed", error=error.message)

    async def _on_close(self) -> None:
        _log.debug("nats_closed", connection=self._name)

    def _refused(self, verb: str, subject: str) -> None:
        """NATS lets us not publish, or subscribe, there, which it says in small letters."""
        if verb == "subscription":
            if len(self._unheard) < _UNHEARD_MAX:
                self._unheard.add(subject)
            return
        for expected in self._client.expected.values():
            if expected.subject.lower() == subject and not expected.reply.done():
                expected.reply.set_exception(NotPermitted.to("publish", expected.subject))

    async def _on_error(self, error: Exception) -> None:
        if violation := _VIOLATION.search(str(error)):
            self._refused(violation[1], violation[2])
        # A refused connection is tried again ten times a second.
        again = isinstance(error, OSError)
        if _LOGIN_REFUSED in str(error):
            again, self.login_refused = self.login_refused, True
        report = _log.debug if again else _log.warning
        report("nats_error", connection=self._name, error=repr(error))


@dataclass(frozen=True, slots=True)
class Login:
    """Who we are to NATS.

    `seed_file` holds the nkey's seed and is read at each connect, so that a new one is
    taken up. `inbox_prefix` is what our inboxes begin with, by default the connection's
    name; `api_prefix` is where JetStream's API is for us.
    """

    seed_file: Path | None = None
    inbox_prefix: str = ""
    api_prefix: str = JETSTREAM_API


NOBODY = Login()
"""Of a server that asks for no login."""


async def connect(
    url: str, *, name: str, login: Login = NOBODY, timeout: float = READ_SECONDS_MAX
) -> Connection:
    """A connection to one of the servers in `url`, which commas part.

    `name` is a NATS token, shown by the server. Raises EventStoreUnavailable when no
    server let us in within `timeout` seconds, FailedPrecondition where the seed's file holds
    none.
    """
    _check_seed(login.seed_file)
    connection = Connection(name, login.inbox_prefix, login.api_prefix)
    opening = asyncio.create_task(connection.open(url, login.seed_file))
    try:
        done, _ = await asyncio.wait({opening}, timeout=timeout)
        if not done and connection.login_refused:
            raise EventStoreUnavailable(_why_refused(login))
        if not done:
            raise EventStoreUnavailable("NATS can't be reached, or refuses the connection")
        await opening
    except BaseException:
        await _give_up(opening)
        await connection.close()
        raise
    return connection


def _why_refused(login: Login) -> str:
    if login.seed_file is not None:
        return f"NATS doesn't know the seed in {login.seed_file}"
    return (
        "NATS wants a login: WEFT_RUNTIME_NATS_SEED_FILE names the seed of its user, and"
        " WEFT_RUNTIME_NATS_ADMIN_SEED_FILE that of admin, who makes what isn't there"
    )


def _check_seed(file: Path | None) -> None:
    """The library fails in ways of its own over a file without a seed."""
    if file is None:
        return
    try:
        held = file.read_bytes()
    except OSError as error:
        raise FailedPrecondition(f"the NATS seed {file} can't be read: {error.strerror}") from None
    if not _SEED.fullmatch(held.strip()):
        raise FailedPrecondition(f"{file} doesn't hold the seed of a NATS user")


async def _give_up(opening: asyncio.Task[None]) -> None:
    """Ends a task that tries to connect. `asyncio.wait_for` of Python 3.11 may swallow a
    cancellation that comes as its future ends (CPython 86296), and nats-py tries on."""
    for _ in range(_CANCELS_MAX):
        if opening.done():
            return
        opening.cancel()
        await asyncio.wait({opening}, timeout=PAUSE_SECONDS)


async def retried(attempt: Callable[[], Awaitable[T]], seconds: float = READ_SECONDS_MAX) -> T:
    """What `attempt` returns, tried again while NATS is away. For what may happen twice.

    Raises EventStoreUnavailable once `seconds` have passed.
    """
    try:
        async with asyncio.timeout(seconds):
            while True:
                try:
                    return await attempt()
                except (NotSent, NoReply):
                    await asyncio.sleep(PAUSE_SECONDS)
    except TimeoutError:
        raise EventStoreUnavailable("NATS can't be reached") from None


def answer_of(message: Reply) -> dict[str, Any]:
    """The JSON object of a JetStream answer; NoReply where it isn't one."""
    try:
        answer = orjson.loads(message.data)
    except orjson.JSONDecodeError as error:
        raise NoReply("JetStream's answer doesn't parse") from error
    if not isinstance(answer, dict):
        raise NoReply("JetStream's answer isn't an object")
    return answer
