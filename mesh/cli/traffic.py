"""`weft mesh split`, `promote`, `rollback`, `splits`: which version takes which share."""

import re
import sys
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli.attaching import Stream, reattached
from mesh.cli.command import command
from mesh.cli.connection import Client
from mesh.cli.failures import usage_error
from mesh.cli.health import health
from mesh.cli.inputs import parse_span
from mesh.cli.names import AGENT, resource_name
from mesh.cli.operations import instances
from mesh.cli.output import Output, moment, note, show_item, show_list, show_message
from mesh.cli.pages import LIMIT, Limit, fetch
from mesh.ids import RESOURCE_ID

if TYPE_CHECKING:
    from weft.control.v1 import splits_pb2, traffic_service_pb2
    from weft.control.v1.traffic_service_pb2_grpc import TrafficServiceStub

__all__ = ["instances"]

_SERVICE = re.compile(rf"({RESOURCE_ID})|services/({RESOURCE_ID})(?:/split)?")
_AGENT = re.compile(
    rf"agents/({RESOURCE_ID})|(tenants/{RESOURCE_ID}/agents/{RESOURCE_ID})(?:/split)?"
)
_RATE = re.compile(r"(\d{1,3}(?:\.\d{1,4})?)%")
_MILLIONTHS_OF_A_PERCENT = 10_000
SERVICES = "services/-"
CALLS_MIN, WINDOW_SECONDS = 100, 60.0
"""Of a policy that doesn't say them, as the contract has it."""

Subject = Annotated[
    str,
    typer.Argument(
        metavar="SUBJECT", help="A service, such as scheduler, or an agent, as agents/AGENT."
    ),
]
Reason = Annotated[str, typer.Option(help="Why, for whoever reads the history.")]
Absent = Annotated[
    bool, typer.Option("--allow-absent", help="Versions that no instance runs will do, too.")
]


@command(instances, "split", example="weft mesh split scheduler 1.4=90 1.5=10 --rollback-above 5%")
def set_split(
    client: Client,
    subject: Subject,
    portions: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="VERSION=WEIGHT...",
            help="A version's share, or an agent's revision's; the first one is the base.",
        ),
    ] = None,
    end: Annotated[bool, typer.Option("--end", help="End the split: all alike again.")] = False,
    rollback_above: Annotated[
        str | None,
        typer.Option(
            metavar="PERCENT%",
            help="Roll back where more calls, or an agent's turns, fail: 5%, or 0.5%.",
        ),
    ] = None,
    calls_min: Annotated[
        int,
        typer.Option(help="Fewer calls, or turns, say nothing; 0 for 100.", min=0, max=1_000_000),
    ] = 0,
    window: Annotated[
        str | None, typer.Option(help="How far back they count: 30s, 5m; 60s by default.")
    ] = None,
    over_base: Annotated[
        bool, typer.Option("--over-base", help="Count only what fails above the base's rate.")
    ] = False,
    allow_absent: Absent = False,
    reason: Reason = "",
    etag: Annotated[str, typer.Option(help="Only where the split has this etag.")] = "",
) -> None:
    """Splits a service's calls between versions, or an agent's new sessions between revisions.

    Calls within a process stay in it: a split is of those that come from other processes.
    Sessions that are there keep their revision, also where the split goes back.
    """
    from weft.control.v1 import traffic_service_pb2 as pb

    if end == bool(portions):
        raise usage_error("give portions such as 1.4=90 1.5=10, or --end")
    request = pb.SetSplitRequest(
        name=_name(subject, client), allow_absent=allow_absent, reason=reason, etag=etag
    )
    for text in portions or ():
        _add_portion(request, text)
    if rollback_above is not None:
        policy = request.rollback_policy
        policy.failures_per_million_max = _rate(rollback_above)
        policy.calls_min, policy.over_base = calls_min, over_base
        if window is not None:
            policy.window.CopyFrom(parse_span(window, "--window"))
    elif calls_min or window is not None or over_base:
        raise usage_error("--calls-min, --window and --over-base go with --rollback-above")
    _show(client, client.call(_stub(client).SetSplit, request).split)


@command(instances, "promote", example="weft mesh promote scheduler 1.5")
def promote(
    client: Client,
    subject: Subject,
    version: Annotated[
        str, typer.Argument(metavar="VERSION", help="The version or revision that gets all.")
    ],
    allow_absent: Absent = False,
    reason: Reason = "",
) -> None:
    """Gives all to one version, or revision, of a split."""
    from weft.control.v1 import traffic_service_pb2 as pb

    request = pb.PromoteRequest(
        name=_name(subject, client), allow_absent=allow_absent, reason=reason
    )
    if _of_service(request.name):
        request.version = version
    else:
        request.agent_revision = _revision(version)
    _show(client, client.call(_stub(client).Promote, request).split)


@command(instances, "rollback", example="weft mesh rollback scheduler")
def roll_back(
    client: Client, subject: Subject, allow_absent: Absent = False, reason: Reason = ""
) -> None:
    """Takes a split back to what it was before; where it was nothing, all goes to its base."""
    from weft.control.v1 import traffic_service_pb2 as pb

    request = pb.RollbackRequest(
        name=_name(subject, client), allow_absent=allow_absent, reason=reason
    )
    _show(client, client.call(_stub(client).Rollback, request).split)


@command(instances, "splits", example="weft mesh splits")
def list_splits(
    client: Client,
    subject: Annotated[
        str | None,
        typer.Argument(
            metavar="SUBJECT", help="Only this one, with its history: scheduler, agents/AGENT."
        ),
    ] = None,
    agents: Annotated[
        bool, typer.Option("--agents", help="Only those of the tenant's agents.")
    ] = False,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Go on with each change, until Ctrl-C: services', or with --agents theirs.",
        ),
    ] = False,
    limit: Limit = LIMIT,
) -> None:
    """Lists the splits of services and of the tenant's agents, and who changed them last."""
    from weft.control.v1 import traffic_service_pb2 as pb

    if subject is not None:
        if agents or watch:
            raise usage_error("give a subject, or one of --agents and --watch")
        request = pb.GetSplitRequest(name=_name(subject, client))
        _show(client, client.call(_stub(client).GetSplit, request).split)
        return
    if watch:
        _watch(client, f"{client.parent}/agents/-" if agents else SERVICES)
        return
    found = [] if agents else _of_services(client, limit)
    if len(found) < limit:
        found += _fetched(client, f"{client.parent}/agents/-", limit - len(found))
    columns = {
        "split": lambda each: _subject(each.name),
        "portions": _portions,
        "rollback": lambda each: _policy(each) or "-",
        "changed": lambda each: moment(each.changes[0].change_time),
        "how": lambda each: _action(each.changes[0]),
        "by": lambda each: each.changes[0].actor,
        "reason": lambda each: each.changes[0].reason,
    }
    show_list(client.output, found, columns)


def _of_services(client: Client, limit: int) -> "list[splits_pb2.Split]":
    """None for who may see those of a tenant only."""
    import grpc

    try:
        return _fetched(client, SERVICES, limit)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.PERMISSION_DENIED:
            raise
        note("Splits of services aren't shown: that takes a permission for the platform.")
        return []


def _fetched(client: Client, parent: str, limit: int) -> "list[splits_pb2.Split]":
    from weft.control.v1 import traffic_service_pb2 as pb

    wanted = pb.ListSplitsRequest(parent=parent)
    return fetch(client, _stub(client).ListSplits, wanted, lambda page: page.splits, limit)


def _watch(client: Client, parent: str) -> None:
    # No server at all is said at once, instead of after all tries to attach.
    health(client)
    for split in _watched(client, parent):
        if client.output is not Output.TABLE:
            show_item(client.output, split)
            continue
        change = split.changes[0]
        how = f"{_action(change)} by {change.actor} {change.reason}".rstrip()
        said = f"{moment(change.change_time)}  {_subject(split.name)}  {_portions(split)}  {how}"
        sys.stdout.write(said + "\n")
        sys.stdout.flush()


def _watched(client: Client, parent: str) -> "Iterator[splits_pb2.Split]":
    """Each state of each split once, over as many streams as it takes."""
    from weft.control.v1 import traffic_service_pb2 as pb

    def opened(seconds: float) -> "Stream[traffic_service_pb2.WatchSplitsResponse]":
        return _stub(client).WatchSplits(pb.WatchSplitsRequest(parent=parent), timeout=seconds)

    seen: dict[str, str] = {}
    for response in reattached(client, opened):
        for split in response.splits:
            if seen.get(split.name) != split.etag:
                seen[split.name] = split.etag
                yield split


def _stub(client: Client) -> "TrafficServiceStub":
    from weft.control.v1.traffic_service_pb2_grpc import TrafficServiceStub

    stub: TrafficServiceStub = client.stub(TrafficServiceStub)
    return stub


def _name(subject: str, client: Client) -> str:
    """The split's name; CommandFailed (usage) where the subject is neither form."""
    service = _SERVICE.fullmatch(subject)
    if service is not None:
        return f"services/{service[1] or service[2]}/split"
    agent = _AGENT.fullmatch(subject)
    if agent is None:
        raise usage_error(
            f"{subject!r} is neither a service nor an agent",
            "Write a service, such as scheduler, or agents/AGENT.",
        )
    return f"{resource_name(agent[1] or agent[2], AGENT, client)}/split"


def _subject(name: str) -> str:
    """What a person calls it: `scheduler`, `agents/bot`."""
    parts = name.split("/")
    return parts[1] if _of_service(name) else "/".join(parts[2:4])


def _of_service(name: str) -> bool:
    return name.startswith("services/")


def _add_portion(request: "traffic_service_pb2.SetSplitRequest", text: str) -> None:
    version, equals, weight = text.rpartition("=")
    if not equals or not version or not weight.isascii() or not weight.isdigit():
        raise usage_error(f"{text!r} is no portion", "Write VERSION=WEIGHT, such as 1.5=10.")
    portion = request.portions.add(weight=min(int(weight), 2**32 - 1))
    if _of_service(request.name):
        portion.version = version
    else:
        portion.agent_revision = _revision(version)


def _revision(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 2**63:
        raise usage_error(f"{text!r} is no revision of an agent", "Revisions are 1, 2 and so on.")
    return int(text)


def _rate(text: str) -> int:
    """Of a million."""
    found = _RATE.fullmatch(text)
    millionths = int(Decimal(found[1]) * _MILLIONTHS_OF_A_PERCENT) if found is not None else -1
    if not 0 <= millionths <= 1_000_000:
        raise usage_error(
            f"--rollback-above: {text!r} is no percentage",
            "Write it with its sign, such as 5% or 0.5%, up to 100%.",
        )
    return millionths


def _portions(split: "splits_pb2.Split") -> str:
    return _shares(split.portions) or "-"


def _shares(portions: "Sequence[splits_pb2.Portion]") -> str:
    total = sum(each.weight for each in portions) or 1
    return ", ".join(
        f"{each.version or each.agent_revision} {100 * each.weight / total:.4g}%"
        for each in portions
    )


def _policy(split: "splits_pb2.Split") -> str:
    if not split.HasField("rollback_policy"):
        return ""
    policy = split.rollback_policy
    rate = policy.failures_per_million_max / _MILLIONTHS_OF_A_PERCENT
    over = " over the base" if policy.over_base else ""
    counted = "calls" if _of_service(split.name) else "turns"
    window = policy.window.ToTimedelta().total_seconds() or WINDOW_SECONDS
    return (
        f"above {rate:.6g}%{over}, of {policy.calls_min or CALLS_MIN} {counted} or more"
        f" within {window:g} s"
    )


def _action(change: "splits_pb2.SplitChange") -> str:
    from weft.control.v1 import splits_pb2

    name: str = splits_pb2.SplitAction.Name(change.action)
    return name.removeprefix("SPLIT_ACTION_").lower().replace("_", " ")


def _show(client: Client, split: "splits_pb2.Split") -> None:
    fields: dict[str, object] = {
        "split": _subject(split.name),
        "portions": _portions(split),
        "rollback": _policy(split),
        "etag": split.etag,
    }
    for number, change in enumerate(split.changes):
        said = f"{moment(change.change_time)} {_action(change)}: {_shares(change.portions) or '-'}"
        fields[f"change {change.revision}" if number else "last change"] = (
            f"{said}, by {change.actor} {change.reason}".rstrip()
        )
    show_message(client.output, split, fields)
