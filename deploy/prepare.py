"""Makes `deploy/.env` with fresh credentials for `compose.yaml` and `compose.mesh.yaml`; never
replaces one. The mesh's certificates are made by `weft ca`, as that file says."""

import base64
import os
import secrets
import sys
from pathlib import Path

import nkeys

USERS = ("host", "admin")


def credentials() -> str:
    nats = "".join(nats_user(user) for user in USERS)
    master_key = base64.b64encode(secrets.token_bytes(32)).decode()
    # NATS would read one that begins with a digit as a number.
    routes = f"WEFT_NATS_ROUTES_PASSWORD=r{secrets.token_hex(32)}\n"
    password = secrets.token_urlsafe(32)
    return f"WEFT_MASTER_KEY={master_key}\n{nats}{routes}VALKEY_PASSWORD={password}\n"


def nats_user(name: str) -> str:
    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    public = nkeys.from_seed(seed).public_key
    prefix = f"WEFT_NATS_{name.upper()}"
    return f"{prefix}_USER={public.decode()}\n{prefix}_SEED={seed.decode()}\n"


def main(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        print(f"{path} is there and stays as it is", file=sys.stderr)
        return 1
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(credentials())
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(__file__).with_name(".env")))
