"""What a process can tell of itself for a report of a fault. No secrets."""

import importlib.metadata
import json
import platform
from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf.struct_pb2 import Struct
from grpc._cython import cygrpc  # type: ignore[attr-defined]

from mesh.settings import Section
from weft.control.v1 import mesh_service_pb2 as pb
from weft.xds.v1 import status_pb2

CHANNELS_MAX = 256
SOCKETS_MAX = 256
RESOURCES_MAX = 4_096
ERROR_LENGTH_MAX = 1_000
SHOWN = frozenset(
    {
        *("host", "advertised_host", "zone", "nats_user", "log_level"),
        *("certificate_dir", "data_dir"),
    }
)
"""Settings whose text is shown. Of others only whether they are set: a text may hold a secret."""


def versions() -> dict[str, str]:
    """Versions of Python, of the system and of the packages that are installed. Reads files."""
    found = {each.name: each.version for each in importlib.metadata.distributions()}
    return {**found, "python": platform.python_version(), "system": platform.platform()}


def settings_told(in_use: Iterable[Section]) -> Struct:
    """All settings by area: numbers as they are, texts as SHOWN allows. `in_use` are those that
    flags may have changed; others are read as the services read them."""
    sections = {type(each): each for each in in_use}
    for kind in _section_types(Section):
        if kind not in sections and kind.__module__.partition(".")[0] in ("mesh", "services"):
            sections[kind] = kind()
    told = Struct()
    told.update({each.area: dict(_shown(each)) for each in sections.values()})
    return told


def channelz() -> Struct:
    """gRPC's channels, subchannels, servers and sockets, as the messages of `grpc.channelz.v1`.

    From gRPC's core, as grpcio-channelz has it, which adds nothing but their parsing. Its
    servicer would be open to everybody.
    """
    channels = _listed(cygrpc.channelz_get_top_channels, "channel", CHANNELS_MAX)
    below = [
        int(reference["subchannelId"])
        for channel in channels
        for reference in channel.get("subchannelRef", ())
    ]
    servers = _listed(cygrpc.channelz_get_servers, "server", CHANNELS_MAX)
    sockets = [
        int(reference["socketId"])
        for server in servers
        for reference in json.loads(
            cygrpc.channelz_get_server_sockets(int(server["ref"]["serverId"]), 0, SOCKETS_MAX)
        ).get("socketRef", ())
    ]
    told = Struct()
    told.update(
        {
            "channels": channels,
            "subchannels": list(_each(cygrpc.channelz_get_subchannel, "subchannel", below)),
            "servers": servers,
            "sockets": list(_each(cygrpc.channelz_get_socket, "socket", sockets[:SOCKETS_MAX])),
        }
    )
    return told


def xds_resources() -> Iterator[pb.XdsResource]:
    """What this process's xDS clients asked for and were told, as CSDS has it. grpcio-csds
    would bring xds-protos, which overwrites other packages' files."""
    said = status_pb2.ClientStatusResponse.FromString(cygrpc.dump_xds_configs())
    states = status_pb2.ClientConfig.ClientResourceStatus
    told = ((client, each) for client in said.config for each in client.generic_xds_configs)
    for _, (client, each) in zip(range(RESOURCES_MAX), told, strict=False):
        yield pb.XdsResource(
            node=client.node.id,
            type_url=each.type_url,
            name=each.name,
            version=each.version_info,
            state=states.Name(each.client_status) if each.client_status in states.values() else "",
            error=each.error_state.details[:ERROR_LENGTH_MAX],
            update_time=each.last_updated,
        )


def _section_types(kind: type[Section]) -> Iterator[type[Section]]:
    for each in kind.__subclasses__():
        yield each
        yield from _section_types(each)


def _shown(section: Section) -> Iterator[tuple[str, Any]]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        if value is None or isinstance(value, bool | int | float):
            yield name, value
        elif name in SHOWN:
            yield name, str(value)
        else:
            yield name, "(set)" if value else ""


def _listed(page_from: Any, key: str, count_max: int) -> list[Any]:
    """All of gRPC's pages, each from an id on."""
    found: list[Any] = []
    start = 0
    while len(found) < count_max:
        page = json.loads(page_from(start))
        found += page.get(key, ())
        if page.get("end") or not page.get(key):
            break
        start = 1 + max(int(each["ref"][f"{key}Id"]) for each in page[key])
    return found[:count_max]


def _each(one_of: Any, key: str, ids: Iterable[int]) -> Iterator[Any]:
    for _, number in zip(range(CHANNELS_MAX), ids, strict=False):
        try:
            answer = one_of(number)
        except ValueError:
            # It was closed since.
            continue
        if answer:
            yield json.loads(answer).get(key, {})
