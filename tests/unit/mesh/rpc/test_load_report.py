"""What a server says of its load."""

import os

import pytest

from mesh.rpc.load_report import LOAD_KEY, LoadReport
from weft.xds.v1 import load_pb2


class Machine:
    """A clock, a processor and calls that a test moves on."""

    def __init__(self) -> None:
        self.now = self.cpu_seconds = 100.0
        self.calls = self.faults = 0
        self.report = LoadReport(
            lambda: (self.calls, self.faults), lambda: self.now, lambda: self.cpu_seconds
        )

    def told(self) -> load_pb2.OrcaLoadReport:
        ((key, data),) = self.report.trailing()
        assert key == LOAD_KEY
        return load_pb2.OrcaLoadReport.FromString(data)

    def work(self, seconds: float, *, cpu: float, calls: int, faults: int = 0) -> None:
        """So much a second, told ten times a second."""
        for _ in range(round(seconds * 10)):
            self.now += 0.1
            self.cpu_seconds += 0.1 * cpu
            self.calls += calls // 10
            self.faults += faults // 10
            self.report.trailing()


def test_rates_come_to_what_they_are() -> None:
    machine = Machine()
    machine.work(10, cpu=0.5, calls=400, faults=20)
    machine.now += 0.02
    told = machine.told()
    assert told.rps_fractional == pytest.approx(400, rel=0.01)
    assert told.eps == pytest.approx(20, rel=0.01)
    assert told.cpu_utilization == pytest.approx(0.5 / (os.cpu_count() or 1), rel=0.01)


def test_a_change_settles_within_seconds_and_an_idle_spell_is_over_at_once() -> None:
    machine = Machine()
    machine.work(5, cpu=0.9, calls=400)
    machine.work(1, cpu=0.1, calls=400)
    machine.now += 0.02
    settling = machine.told().cpu_utilization * (os.cpu_count() or 1)
    assert 0.1 < settling < 0.5
    machine.now += 60
    assert machine.told().rps_fractional < 1


def test_a_report_is_the_same_until_it_is_due() -> None:
    machine = Machine()
    machine.work(1, cpu=0.5, calls=100)
    machine.now += 0.02
    before = machine.report.trailing()
    machine.calls += 1000
    machine.now += 0.02
    assert machine.report.trailing() is before
    machine.now += 0.1
    assert machine.report.trailing() != before


def test_not_every_answer_tells_it() -> None:
    machine = Machine()
    machine.work(1, cpu=0.5, calls=100)
    machine.now += 0.02
    assert machine.report.trailing()
    machine.now += 0.005
    assert machine.report.trailing() == ()
