"""The processes of a deployment."""

import time
from pathlib import Path

import pytest

from mesh.security.ca import CertificateAuthority
from tests.support.command_line import Weft
from tests.support.memory_platform import MemoryPlatform
from weft.control.v1 import instances_pb2


def instance(name: str, *services: str, **fields: object) -> instances_pb2.Instance:
    """One that runs for two hours."""
    made = instances_pb2.Instance(
        name=f"instances/{name}",
        services=services,
        target="127.0.0.1:1",
        version="1.2",
        state=instances_pb2.INSTANCE_STATE_SERVING,
        load=instances_pb2.InstanceLoad(cpu_utilization=0.25, calls=3),
        **fields,  # type: ignore[arg-type]
    )
    made.start_time.FromSeconds(int(time.time()) - 2 * 3600 - 60)
    return made


def test_instances_are_listed_with_what_they_say_of_themselves(
    weft: Weft, platform: MemoryPlatform
) -> None:
    platform.instances.add(instance("one", "auth", "scheduler", zone="here"))
    lines = weft("mesh", "instances").out.splitlines()
    assert lines[0].split() == [
        *("INSTANCE", "STATE", "TARGET", "ZONE", "VERSION", "LOAD", "AGE", "SERVICES")
    ]
    assert " ".join(lines[1].split()) == (
        "one serving 127.0.0.1:1 here 1.2 25% cpu, 3 calls 2h auth, scheduler"
    )


def test_instances_of_one_service_as_data(weft: Weft, platform: MemoryPlatform) -> None:
    for name, service in (("one", "scheduler"), ("two", "vectors")):
        platform.instances.add(instance(name, service))
    found = weft("mesh", "instances", "--service", "vectors", "-o", "json").data
    assert [each["name"] for each in found] == ["instances/two"]
    assert found[0]["load"] == {"cpu_utilization": 0.25, "calls": 3, "served": [], "turns": []}


def test_a_bootstrap_names_the_certificates_and_says_what_is_wrong_with_them(
    weft: Weft, platform: MemoryPlatform, tmp_path: Path
) -> None:
    platform.instances.add(instance("one", "control", xds_target="127.0.0.1:2"))
    plain = weft("mesh", "bootstrap")
    assert (plain.code, plain.err) == (0, "")
    nowhere = weft("mesh", "bootstrap", "--certificates", "/nope")
    assert nowhere.code == 0
    assert "asks nobody for a certificate" in nowhere.err
    assert "no folder /nope on this machine" in nowhere.err
    platform.instances.add(
        instance("two", "control", xds_target="127.0.0.1:3", spiffe_id="spiffe://a.b/process/host")
    )
    ca = CertificateAuthority(tmp_path / "ca", ["agents"])
    ca.init("weft.internal")
    folder = ca.issue_client("ci").folder
    good = weft("mesh", "bootstrap", "--certificates", str(folder))
    assert (good.code, good.err) == (0, "")
    assert str(folder / "key.pem") in good.out
    of_process = weft("mesh", "bootstrap", "--certificates", str(ca.issue("agents").folder))
    assert "who has it is that service" in of_process.err
    (folder / "key.pem").unlink()
    bad = weft("mesh", "bootstrap", "--certificates", str(folder))
    assert (bad.code, bad.out) == (1, "")
    assert f"the certificate in {folder} can't be read" in bad.err


@pytest.mark.parametrize("command", ["drain", "undrain", "dump"])
def test_no_instance_is_meant_by_an_empty_name(
    weft: Weft, platform: MemoryPlatform, command: str
) -> None:
    platform.instances.add(instance("one", "agents"))
    for name in ("", "instances/"):
        refused = weft("mesh", command, name)
        assert refused.code == 2
        assert "name an instance" in refused.err


IDS = ("01m8frg3fke2zbpa785r8ps0t4-host", "01m8frg4abc2zbpa785r8ps0w9-host")


@pytest.mark.parametrize(
    ("given", "meant"),
    [(IDS[0], 0), ("01m8frg3", 0), ("01m8frg4", 1), ("8ps0t4", 0), ("8ps0w9-host", 1)],
)
def test_an_instance_is_named_by_a_part_that_only_it_has(
    weft: Weft, platform: MemoryPlatform, given: str, meant: int
) -> None:
    for each in IDS:
        platform.instances.add(instance(each, "agents"))
    drained = weft("mesh", "drain", given)
    assert drained.code == 0, drained.err
    assert drained.out.split()[:2] == ["instance", IDS[meant]]


@pytest.mark.parametrize("given", ["01m8", "zbpa", "host"])
def test_a_part_of_several_ids_is_refused_with_them(
    weft: Weft, platform: MemoryPlatform, given: str
) -> None:
    for each in IDS:
        platform.instances.add(instance(each, "agents"))
    refused = weft("mesh", "drain", given)
    assert refused.code == 2
    assert f"several instances have {given}: {', '.join(IDS)}\n" in refused.err


@pytest.mark.parametrize("given", ["zzz", "ps0", "instances/zzz"])
def test_an_instance_that_is_not_there_is_told_by_its_id(
    weft: Weft, platform: MemoryPlatform, given: str
) -> None:
    platform.instances.add(instance(IDS[0], "agents"))
    refused = weft("mesh", "drain", given)
    assert refused.code == 3
    bare = given.removeprefix("instances/")
    assert refused.err.startswith(f"weft: no instance {bare}\n")
    assert "weft mesh instances" in refused.err


def test_the_status_names_what_nobody_serves(weft: Weft, platform: MemoryPlatform) -> None:
    platform.instances.add(instance("one", "scheduler", zone="here", xds_target="127.0.0.1:2"))
    ran = weft("mesh", "status")
    assert ran.code == 1
    assert "nobody takes calls of agents" in ran.err
    lines = [" ".join(line.split()) for line in ran.out.splitlines()]
    assert lines[1:3] == ["agents NOBODY 0", "scheduler 1 0 here 1.2"]
    assert lines[-1] == "one here 1.2 serving 25% cpu, 3 calls scheduler (control plane)"
    platform.instances.add(instance("two", "agents"))
    assert weft("mesh", "status").code == 0
