"""The envelope: whatever is sealed comes back, link by link."""

from google.protobuf.wrappers_pb2 import BytesValue
from hypothesis import given
from hypothesis import strategies as st

from mesh.events.blobs import MemoryBlobStore
from mesh.events.envelope import COMMIT_BYTES_MAX, Envelope, check_chain
from mesh.events.opened import BYTES_MAX
from mesh.events.store import START, CommitDraft, NewEvent, Selection, StreamName

TOKENS = st.text("abcXYZ019_-", min_size=1, max_size=64)
STREAMS = st.builds(StreamName, TOKENS, TOKENS, st.lists(TOKENS, max_size=4).map(tuple))
PAYLOADS = st.binary(max_size=50) | st.integers(1, 400_000).map(bytes)
EVENTS = st.builds(NewEvent, PAYLOADS.map(lambda data: BytesValue(value=data)), st.booleans())
DRAFTS = st.builds(
    CommitDraft,
    st.lists(EVENTS, min_size=1, max_size=8),
    st.integers(0, 2**62),
    actor=st.text(max_size=20),
    request_id=st.text(max_size=20),
    causation_id=st.text(max_size=20),
    traceparent=st.text(max_size=20),
)


@given(STREAMS, st.lists(DRAFTS, min_size=1, max_size=3))
async def test_what_is_sealed_comes_back(stream: StreamName, drafts: list[CommitDraft]) -> None:
    envelope = Envelope(MemoryBlobStore())
    head = START
    for position, draft in enumerate(drafts, 1):
        data = await envelope.seal(stream, draft, head)
        stored = await envelope.open(str(stream), position, data)
        head_behind = check_chain(head, [stored])

        commit = stored.commit
        assert len(data) <= COMMIT_BYTES_MAX
        assert head_behind == stored.head
        assert stored.head.revision == head.revision + len(draft.events)
        assert commit.time.ToNanoseconds() == draft.time_ns
        assert (commit.stream, commit.tenant, commit.codec) == (str(stream), stream.tenant, "plain")
        assert (commit.actor, commit.request_id) == (draft.actor, draft.request_id)
        assert (commit.causation_id, commit.traceparent) == (draft.causation_id, draft.traceparent)
        for event, new in zip(commit.events, draft.events, strict=True):
            payload = BytesValue()
            assert event.payload.Unpack(payload)
            assert payload == new.payload
            assert event.may_ignore == new.may_ignore
        head = stored.head


async def test_what_is_kept_opened_is_bounded_with_what_came_from_blobs() -> None:
    envelope, stream = Envelope(MemoryBlobStore()), StreamName("state", "acme", ("s",))
    draft = CommitDraft([NewEvent(BytesValue(value=bytes(1_000_000)))], 1)
    data = await envelope.seal(stream, draft, START)
    positions = range(1, BYTES_MAX // 1_000_000 + 3)
    opened = [await envelope.open_shared(str(stream), at, data) for at in positions]
    again = await envelope.open_shared(str(stream), positions[-1], data)
    assert again is opened[-1]
    assert await envelope.open_shared(str(stream), 1, data) is not opened[0]


@given(STREAMS)
def test_a_stream_name_is_its_text(stream: StreamName) -> None:
    assert StreamName.parse(str(stream)) == stream
    assert stream.subject == f"weft.events.{stream}"


@given(STREAMS, st.lists(TOKENS, max_size=4))
def test_a_selection_holds_what_its_subjects_hold(stream: StreamName, prefix: list[str]) -> None:
    tokens = str(stream).split(".")
    for selected in (prefix, tokens, tokens[: len(prefix)], tokens[:-1]):
        selection = Selection(".".join(selected))
        assert selection.holds(str(stream)) == (tokens[: len(selected)] == selected)
        wildcard = selection.subjects[-1].removesuffix(">")
        held = stream.subject in selection.subjects or stream.subject.startswith(wildcard)
        assert held == selection.holds(str(stream))
