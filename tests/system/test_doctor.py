"""`weft doctor` on a platform whose event store goes away."""

import asyncio
from pathlib import Path

from tests.support.command_line import Ran
from tests.support.nats import running_nats
from tests.support.platform import platform
from tests.support.weft_up import weft


async def doctor(address: str) -> Ran:
    return await asyncio.to_thread(weft, "--address", address, "doctor")


async def test_an_event_store_that_is_away_is_told(tmp_path: Path) -> None:
    (tmp_path / "nats").mkdir()
    async with (
        running_nats(tmp_path / "nats") as nats,
        platform(tmp_path / "data", NATS_URL=nats.url) as running,
    ):
        well = await doctor(running.addresses["grpc"])
        assert well.code == 0, well.err
        assert "ok   event store" in well.out
        await nats.kill()
        ill = await doctor(running.addresses["grpc"])
        assert ill.code == 1
        assert "fail event store" in ill.out
        assert "Traceback" not in ill.err
