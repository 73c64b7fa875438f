"""How fast what a worker says is read, and how much of payloads is held."""

import pytest

from mesh.clock import Clock
from mesh.errors import LimitExceeded
from services.scheduler.pace import Pace, entries_of
from services.scheduler.payloads import Payloads
from weft.scheduler.v1 import worker_service_pb2 as pb


class Hands:
    """A clock that goes on by hand."""

    def __init__(self) -> None:
        self.seconds = 100.0
        self.clock = Clock(monotonic=lambda: self.seconds)


def test_as_much_as_a_second_takes_may_come_at_once_and_the_rest_waits() -> None:
    hands = Hands()
    pace = Pace(10, hands.clock)
    assert [pace.wait_seconds(1) for _ in range(10)] == [0.0] * 10
    assert pace.wait_seconds(1) == pytest.approx(0.1)
    assert pace.wait_seconds(5) == pytest.approx(0.6)
    hands.seconds += 0.6
    assert pace.wait_seconds(1) == pytest.approx(0.1)


def test_a_long_silence_saves_no_more_than_a_second() -> None:
    hands = Hands()
    pace = Pace(10, hands.clock)
    hands.seconds += 1_000
    assert pace.wait_seconds(10) == pytest.approx(0.0)
    assert pace.wait_seconds(10) == pytest.approx(1.0)


def test_each_task_of_a_message_counts() -> None:
    beat = pb.WorkerHeartbeat(running=[pb.TaskProgress(task="t", attempt=1)] * 7)
    reports = pb.WorkerReports(reports=[pb.WorkerReport()] * 3)
    assert entries_of(pb.AttachRequest(heartbeat=beat)) == 7
    assert entries_of(pb.AttachSharedRequest(reports=reports)) == 3
    assert entries_of(pb.AttachRequest(slots=pb.WorkerSlots(slots=4))) == 1


def test_payloads_on_their_way_count_until_they_are_counted_where_they_are() -> None:
    hands, stored = Hands(), 0
    payloads = Payloads(100, lambda: stored, hands.clock)
    with payloads.coming(60):
        hands.seconds += 1
        with pytest.raises(LimitExceeded) as raised, payloads.coming(41):
            pass
        assert raised.value.retry_seconds == 1.0
        with payloads.coming(40), payloads.coming(0):
            stored = 60
    hands.seconds += 1
    with payloads.coming(40):
        stored = 100
    with pytest.raises(LimitExceeded), payloads.coming(1):
        pass
    stored = 0
    hands.seconds += 1
    with payloads.coming(100):
        pass


def test_what_is_refused_takes_no_room() -> None:
    payloads = Payloads(100, lambda: 0, Hands().clock)
    for _ in range(3):
        with pytest.raises(LimitExceeded), payloads.coming(101):
            pass
    with payloads.coming(100):
        pass
