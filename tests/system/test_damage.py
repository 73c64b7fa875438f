"""Stored data that is damaged or lost: refused at the start, and never passed over."""

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.platform import Platform, platform
from tests.support.processes import until
from tests.support.turn_client import TurnClient
from tests.support.weft_up import weft, weft_up
from weft.agents.v1 import agent_pb2
from weft.state.v1 import state_service_pb2

FREE_PORTS = ("--port", "0", "--http-port", "0")
EVENTS = Path("nats/jetstream/jetstream/WEFT/streams/EVENTS")
BLOCK = EVENTS / "msgs" / "1.blk"
TURNS = 6


@pytest.fixture(scope="module")
async def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a session of several turns, stopped in order."""
    folder = tmp_path_factory.mktemp("intact") / "data"
    async with platform(folder) as running:
        agent = await running.apply("bot", agent_pb2.AgentSpec())
        session = await running.session(agent)
        for number in range(TURNS):
            await TurnClient(session, f"turn {number}").run(running)
        assert await running.stop() == 0
    return folder


@pytest.fixture
def folder(intact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to be damaged, with a copy of its keys: what starts on a log that lost its
    keys makes new ones."""
    keys = shutil.copytree(os.environ["XDG_CONFIG_HOME"], tmp_path / "config")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(keys))
    return shutil.copytree(intact, tmp_path / "data")


def halve(folder: Path) -> None:
    (folder / EVENTS / "msgs" / "index.db").unlink()
    block = folder / BLOCK
    block.write_bytes(block.read_bytes()[: block.stat().st_size // 2])


def cut_last_byte(folder: Path) -> None:
    (folder / EVENTS / "msgs" / "index.db").unlink()
    block = folder / BLOCK
    block.write_bytes(block.read_bytes()[:-1])


def empty(folder: Path) -> None:
    (folder / BLOCK).write_bytes(b"")


def empty_without_index(folder: Path) -> None:
    (folder / EVENTS / "msgs" / "index.db").unlink()
    empty(folder)


def flip(share: float) -> Callable[[Path], None]:
    """Flips bits in some bytes, that far into the block."""

    def damage(folder: Path) -> None:
        (folder / EVENTS / "msgs" / "index.db").unlink()
        block = folder / BLOCK
        data = bytearray(block.read_bytes())
        start = int(len(data) * share)
        for place in range(start, start + 8):
            data[place] ^= 0xFF
        block.write_bytes(data)

    return damage


def remove_block(folder: Path) -> None:
    (folder / BLOCK).unlink()


def remove_stream(folder: Path) -> None:
    shutil.rmtree(folder / EVENTS)


def remove_store(folder: Path) -> None:
    shutil.rmtree(folder / "nats")


def garble_ledger(folder: Path) -> None:
    (folder / "heads.sqlite3").write_text("7\n" * 1_000)


DAMAGES = {
    "halved": halve,
    "last byte cut": cut_last_byte,
    "emptied": empty,
    "emptied, no index": empty_without_index,
    "bits flipped at the begin": flip(0.01),
    "bits flipped in the middle": flip(0.5),
    "bits flipped near the end": flip(0.95),
    "block removed": remove_block,
    "stream removed": remove_stream,
    "store removed": remove_store,
    "ledger garbled": garble_ledger,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_log_that_lost_commits_is_refused_each_time(
    folder: Path, damage: Callable[[Path], None]
) -> None:
    damage(folder)
    # A refused start must not make the next one pass.
    for _ in range(2):
        refused = weft("up", "--data-dir", folder, *FREE_PORTS)
        assert refused.code == 1, refused.err
        assert "damaged" in refused.err
        assert "weft up --accept-loss" in refused.err
        assert "Traceback" not in refused.err


@pytest.mark.parametrize("damage", [halve, empty, flip(0.5), remove_stream, garble_ledger])
def test_an_accepted_loss_is_started_on_and_stays_accepted(
    folder: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    damage(folder)
    log_file = tmp_path / "up.log"
    with weft_up(log_file, "--data-dir", folder, *FREE_PORTS, "--accept-loss") as up:
        applied = up.weft("agent", "apply", "-f", "-", stdin="agent: bot\ntools: [calculator]")
        assert applied.code == 0, applied.err
        asked = up.weft("ask", "bot", "How much is 6 * 7?")
        assert asked.code == 0, asked.err
    with weft_up(log_file, "--data-dir", folder, *FREE_PORTS) as up:
        assert up.weft("session", "list").code == 0
        assert up.stop() == 0


def marked_position(folder: Path) -> int:
    with closing(sqlite3.connect(folder / "heads.sqlite3")) as ledger:
        position: int = ledger.execute("SELECT position FROM followed").fetchone()[0]
    return position


async def test_the_ledger_is_written_while_it_runs(folder: Path) -> None:
    before = marked_position(folder)
    assert before >= TURNS
    async with platform(folder) as running:
        session = await running.session("tenants/default/agents/bot")
        await TurnClient(session, "one more").run(running)
        # Killed, it has no end at which to write it.
        await until(lambda: marked_position(folder) > before)
        await running.kill()
    halve(folder)
    assert weft("up", "--data-dir", folder, *FREE_PORTS).code == 1


def test_a_folder_of_the_version_before_is_still_watched(folder: Path) -> None:
    """It had a mark in place of the ledger."""
    position = marked_position(folder)
    with closing(sqlite3.connect(folder / "heads.sqlite3")) as ledger:
        log = ledger.execute("SELECT log FROM followed").fetchone()[0]
    for file in folder.glob("heads.sqlite3*"):
        file.unlink()
    mark = {"log": log, "position": position, "lacking": 0}
    (folder / "log_mark").write_text(json.dumps(mark))
    halve(folder)
    refused = weft("up", "--data-dir", folder, *FREE_PORTS)
    assert refused.code == 1
    assert f"but it held position {position}" in refused.err


async def test_kills_and_stops_at_any_time_are_no_damage(folder: Path) -> None:
    running = Platform(folder)
    session = "tenants/default/agents/bot"
    for turn in range(8):
        await running.start()
        try:
            made = await running.session(session)
            await TurnClient(made, f"turn {turn}").run(running)
            if turn % 4 == 3:
                assert await running.stop() == 0
        finally:
            await running.kill()
    async with platform(folder) as last:
        verified = await last.state.VerifyReplay(
            state_service_pb2.VerifyReplayRequest(name=made), timeout=10
        )
    assert verified.matches
