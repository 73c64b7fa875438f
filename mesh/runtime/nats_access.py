"""Who may do what on NATS: the accounts of its configuration. Pure.

WEFT holds the streams, and the users `host` and `admin`. Each service has an account that
imports what it may use, see `nats_users`. SUBSCRIBERS imports the live subjects and has
no JetStream; a user of it hears those of one tenant.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mesh.events.jetstream.assets import LIVE_PREFIX
from mesh.events.jetstream.connection import JETSTREAM_API
from mesh.ids import RESOURCE_ID
from mesh.runtime.nats_users import BusUser

ACCOUNT = "WEFT"
SUBSCRIBERS = "SUBSCRIBERS"
TENANT = re.compile(RESOURCE_ID)
"""What names a tenant that is somebody's: `_system` isn't."""

_CONNECTIONS_MAX = 256
_SUBSCRIPTIONS_MAX = 1024
# Who publishes nothing still needs a list: nats-server takes an empty one for no
# restriction. Nobody listens here, and tenants' accounts export nothing.
_NOWHERE = "_nowhere"
# After it, the server forgets where the answers of a batched read went.
_BATCH_SECONDS_MAX = "30s"


@dataclass(frozen=True, slots=True)
class Subscriber:
    """Somebody who hears a tenant's live events from NATS; `nkey` is a public key."""

    tenant: str
    name: str
    nkey: str

    def __post_init__(self) -> None:
        for token in (self.tenant, self.name):
            if not TENANT.fullmatch(token):
                raise ValueError(f"{token!r} doesn't match {TENANT.pattern}")

    @property
    def subject(self) -> str:
        """What it may subscribe to."""
        return f"{LIVE_PREFIX}.*.{self.tenant}.>"


def access_configuration(
    users: Sequence[BusUser],
    nkeys: Mapping[str, str],
    subscribers: Iterable[Subscriber] = (),
    *,
    include: str = "",
) -> str:
    """The configuration of all accounts.

    `nkeys` has the public key of each user, or the variable that holds it as `$NAME`;
    `include` names a file with the subscribers, where they aren't given.
    """
    apart = [user for user in users if user.apart]
    accounts: dict[str, Any] = {
        ACCOUNT: {
            "jetstream": "enabled",
            "exports": _exports(apart),
            "users": [_user(user, nkeys[user.name]) for user in users if not user.apart],
        }
    }
    for user in apart:
        users_of = [_user(user, nkeys[user.name])]
        accounts[account_of(user)] = {"imports": _imports(user), "users": users_of}
    accounts[SUBSCRIBERS] = {
        "imports": [{"stream": {"account": ACCOUNT, "subject": f"{LIVE_PREFIX}.>"}}],
        "limits": {"max_connections": _CONNECTIONS_MAX, "max_subscriptions": _SUBSCRIPTIONS_MAX},
        "users": [subscriber_user(subscriber) for subscriber in subscribers],
    }
    accounts["SYS"] = {}
    text = json.dumps(accounts, indent=1)
    if include:
        text = text.replace('"users": []', f"include {json.dumps(include)}")
    # Variables are not looked for within quotes.
    for key in nkeys.values():
        if key.startswith("$"):
            text = text.replace(f'"nkey": "{key}"', f'"nkey": {key}')
    return f"accounts: {text}\nsystem_account: SYS\n"


def account_of(user: BusUser) -> str:
    """The account that a user is in."""
    return f"{ACCOUNT}_{user.name.upper()}" if user.apart else ACCOUNT


def subscriber_user(subscriber: Subscriber) -> dict[str, Any]:
    """Its entry among an account's users."""
    permissions = {"publish": [_NOWHERE], "subscribe": [subscriber.subject]}
    return {"nkey": subscriber.nkey, "permissions": permissions}


def _user(user: BusUser, nkey: str) -> dict[str, Any]:
    permissions = {"publish": list(user.publish), "subscribe": list(user.subscribe)}
    return {"nkey": nkey, "permissions": permissions}


def _exports(apart: Sequence[BusUser]) -> list[dict[str, Any]]:
    """What other accounts may import, each subject for those that have it."""
    grants: dict[tuple[str, str], list[str]] = defaultdict(list)
    grants["stream", f"{LIVE_PREFIX}.>"].append(SUBSCRIBERS)
    for user in apart:
        subjects = [("service", subject) for subject in user.sends]
        subjects += [("service", f"{JETSTREAM_API}.{call}") for call in user.calls]
        subjects += [("batches", f"{JETSTREAM_API}.{get}") for get in user.gets]
        subjects += [("stream", subject) for subject in user.hears]
        for grant in subjects:
            grants[grant].append(account_of(user))
    return [_export(kind, subject, accounts) for (kind, subject), accounts in grants.items()]


def _export(kind: str, subject: str, accounts: Sequence[str]) -> dict[str, Any]:
    if kind == "stream":
        return {"stream": subject, "accounts": list(accounts)}
    export: dict[str, Any] = {"service": subject, "accounts": list(accounts)}
    if kind == "batches":
        export |= {"response_type": "Stream", "response_threshold": _BATCH_SECONDS_MAX}
    return export


def _imports(user: BusUser) -> list[dict[str, Any]]:
    sent = [{"service": {"account": ACCOUNT, "subject": subject}} for subject in user.sends]
    called = [
        {
            "service": {"account": ACCOUNT, "subject": f"{JETSTREAM_API}.{call}"},
            "to": f"{user.api}.{call}",
        }
        for call in (*user.calls, *user.gets)
    ]
    heard = [{"stream": {"account": ACCOUNT, "subject": subject}} for subject in user.hears]
    return [*sent, *called, *heard]
