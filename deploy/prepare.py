"""Makes `deploy/.env` with fresh credentials for `compose.yaml`; never replaces one."""

import base64
import os
import secrets
import sys
from pathlib import Path

import nkeys


def credentials() -> str:
    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    user = nkeys.from_seed(seed).public_key
    return (
        f"WEFT_NATS_USER={user.decode()}\n"
        f"WEFT_NATS_SEED={seed.decode()}\n"
        f"WEFT_MASTER_KEY={base64.b64encode(os.urandom(32)).decode()}\n"
        f"VALKEY_PASSWORD={secrets.token_urlsafe(32)}\n"
    )


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
