"""The authority: what it signs, what it refuses, and what its files are while they change."""

import os
import shutil
import stat
import subprocess
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from mesh.clock import NANOSECONDS, Clock
from mesh.errors import AlreadyExists, DataDamaged, FailedPrecondition
from mesh.security.ca import CertificateAuthority
from mesh.security.certificate_files import CertificateFiles
from mesh.security.certificates import Names, names_of, read_pair
from mesh.security.spiffe import (
    ProcessId,
    check_trust_domain,
    parse_process_id,
    role_of,
    services_of,
)

CATALOGUE = ("agents", "models", "tools")
DAY = timedelta(days=1)


@pytest.fixture
def ca(tmp_path: Path) -> CertificateAuthority:
    made = CertificateAuthority(tmp_path / "ca", CATALOGUE)
    made.init("weft.internal")
    return made


def certificate(folder: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / "cert.pem").read_bytes())


def root_certificate(ca: CertificateAuthority) -> x509.Certificate:
    return x509.load_pem_x509_certificates((ca.folder / "bundle.pem").read_bytes())[0]


def modes(folder: Path) -> set[int]:
    return {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}


def later(days: float) -> Clock:
    return Clock(lambda: time.time_ns() + int(days * 86_400 * NANOSECONDS), time.monotonic)


def test_a_certificate_is_what_x509_svid_asks_for(ca: CertificateAuthority) -> None:
    made = certificate(ca.issue("agents.tools", ["a.example.org"], ["10.1.2.3"]).folder)
    names = names_of(made)
    assert names.uri == "spiffe://weft.internal/process/agents.tools"
    own = ("agents.weft.internal", "tools.weft.internal")
    assert names.dns == (*own, "weft", "localhost", "a.example.org")
    assert names.ip == ("127.0.0.1", "::1", "10.1.2.3")
    extensions = made.extensions
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign
    assert set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == {
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    }
    assert made.serial_number.bit_length() > 64
    assert made.not_valid_after_utc - made.not_valid_before_utc < timedelta(days=31)


def test_the_root_signs_certificates_only(ca: CertificateAuthority) -> None:
    root = root_certificate(ca)
    constraints = root.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
    assert root.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    assert names_of(root).uri == "spiffe://weft.internal"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl here")
def test_openssl_accepts_what_was_issued_and_nothing_of_another_authority(
    ca: CertificateAuthority, tmp_path: Path
) -> None:
    other = CertificateAuthority(tmp_path / "other", CATALOGUE)
    other.init("weft.internal")

    def verified(bundle_of: CertificateAuthority, folder: Path, *flags: str) -> bool:
        command = ["openssl", "verify", "-x509_strict", *flags]
        command += ["-CAfile", str(bundle_of.folder / "bundle.pem"), str(folder / "cert.pem")]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    folder = ca.issue("host").folder
    for purpose in ("sslserver", "sslclient"):
        assert verified(ca, folder, "-purpose", purpose)
    assert verified(ca, folder, "-verify_hostname", "models.weft.internal")
    assert not verified(ca, folder, "-verify_hostname", "models.example.org")
    assert not verified(other, folder)
    assert not verified(ca, folder, "-attime", str(int(time.time()) + 31 * 86_400))


def test_only_their_owner_reads_the_files(ca: CertificateAuthority) -> None:
    before = os.umask(0)
    try:
        ca.issue("host")
        ca.rotate()
    finally:
        os.umask(before)
    assert modes(ca.folder) == {0o600}
    assert stat.S_IMODE(ca.folder.stat().st_mode) == 0o700


def test_there_is_one_authority_in_a_folder(ca: CertificateAuthority) -> None:
    before = (ca.folder / "ca.key").read_bytes()
    with pytest.raises(AlreadyExists):
        ca.init("weft.internal")
    assert (ca.folder / "ca.key").read_bytes() == before


def test_without_an_authority_it_is_said_what_makes_one(tmp_path: Path) -> None:
    none = CertificateAuthority(tmp_path / "none", CATALOGUE)
    for use in (lambda: none.issue("host"), none.rotate, none.finish, none.issued, none.roots):
        with pytest.raises(FailedPrecondition, match="weft ca init"):
            use()


def test_a_name_of_a_service_is_given_to_its_processes_only(ca: CertificateAuthority) -> None:
    for name in ("models.weft.internal", "weft.internal", "x.models.weft.internal"):
        with pytest.raises(ValueError, match="only Weft's own"):
            ca.issue("tools", [name])
    with pytest.raises(ValueError, match="IP"):
        ca.issue("tools", [], ["nowhere"])


@pytest.mark.parametrize(
    ("dns", "ip", "problem"),
    [
        ("10.0.0.7", "", "an address, not a name: --ip"),
        ("weft.example.org:50051", "", "no DNS name"),
        ("https://weft.example.org", "", "no DNS name"),
        ("weft_1.example.org", "", "no DNS name"),
        ("-weft.example.org", "", "no DNS name"),
        ("weft..example.org", "", "no DNS name"),
        ("weft.example.org.", "", "no DNS name"),
        ("*.example.org", "", "no DNS name"),
        ("weft.7", "", "no DNS name"),
        ("a" * 64, "", "no DNS name"),
        (".".join(["a" * 50] * 6), "", "no DNS name"),
        ("", "weft.example.org", "no IP address, .* --dns"),
        ("", "10.0.0.7/24", "no IP address"),
        ("", "[::1]", "no IP address"),
        ("", "10.0.0.7:50051", "no IP address"),
        ("", "0.0.0.0", "reached"),
        ("", "::", "reached"),
        ("", "fe80::1%eth0", "reached"),
    ],
)
def test_what_nobody_dials_is_in_no_certificate(
    ca: CertificateAuthority, dns: str, ip: str, problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        ca.issue("tools", [dns] if dns else [], [ip] if ip else [])
    assert ca.issued() == []


def test_names_are_written_in_one_way(ca: CertificateAuthority) -> None:
    made = ca.issue("tools", ["Weft-1.Example.org"], ["FD00:0::7"])
    assert "weft-1.example.org" in made.names.dns
    assert "fd00::7" in made.names.ip
    with pytest.raises(ValueError, match="only Weft's own"):
        ca.issue("tools", ["Models.Weft.internal"])


def test_machines_with_the_same_services_have_a_folder_each(ca: CertificateAuthority) -> None:
    one = ca.issue("host", ["a.example.org"], name="weft-1")
    two = ca.issue("host", ["b.example.org"], name="weft-2")
    assert (one.folder.name, two.folder.name) == ("weft-1", "weft-2")
    assert one.lost == two.lost == ()
    assert "a.example.org" in names_of(certificate(one.folder)).dns
    renewed = {each.folder: each.names for each in ca.issue_all()}
    assert renewed == {one.folder: one.names, two.folder: two.names}
    with pytest.raises(FailedPrecondition, match="--name"):
        ca.issue("tools", name="weft-1")
    again = ca.issue("host", ["c.example.org"], name="weft-2")
    assert again.lost == ("b.example.org",)
    (two.folder / "cert.pem").write_text("")
    assert ca.issue("host", ["b.example.org"], name="weft-2").lost == ()


@pytest.mark.parametrize("name", ["Weft", "a.b", "../tools", "-a", "a" * 64, ""])
def test_what_can_be_no_folder_is_no_name(ca: CertificateAuthority, name: str) -> None:
    with pytest.raises(ValueError, match="can't name"):
        ca.issue_client(name)
    with pytest.raises(ValueError, match="can't name"):
        ca.issue("host", name=name)


def test_a_clients_certificate_is_one_of_no_service_and_of_no_server(
    ca: CertificateAuthority,
) -> None:
    made = ca.issue_client("agents")
    assert made.folder == ca.folder / "clients" / "agents"
    found = certificate(made.folder)
    assert names_of(found) == Names("spiffe://weft.internal/client/agents")
    usage = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.CLIENT_AUTH}
    holder = CertificateFiles(made.folder).held().holder
    assert not any(holder.may_act_as(each) for each in (*CATALOGUE, "agents", "host"))
    assert parse_process_id(str(holder)) is None
    # It is renewed with the others, and keeps an old root trusted as they do.
    ca.issue("agents")
    ca.rotate()
    with pytest.raises(FailedPrecondition, match="certificates/agents, clients/agents"):
        ca.finish()
    assert [each.folder.parent.name for each in ca.issue_all()] == ["certificates", "clients"]
    ca.finish()
    assert names_of(certificate(made.folder)) == names_of(found)


def test_renewing_keeps_the_names_and_changes_the_key(ca: CertificateAuthority) -> None:
    folders = [ca.issue("tools", ["t.example.org"]).folder, ca.issue("host").folder]
    before = [certificate(folder) for folder in folders]
    renewed = ca.issue_all()
    assert {each.folder for each in renewed} == set(folders)
    for folder, old in zip(folders, before, strict=True):
        made = certificate(folder)
        assert names_of(made) == names_of(old)
        assert made.serial_number != old.serial_number
        assert made.public_key() != old.public_key()


def test_who_runs_all_services_is_renewed_with_those_that_were_added(
    ca: CertificateAuthority,
) -> None:
    folder = ca.issue("host").folder
    CertificateAuthority(ca.folder, (*CATALOGUE, "vectors")).issue_all()
    assert "vectors.weft.internal" in names_of(certificate(folder)).dns


def test_a_root_is_replaced_in_three_steps_and_in_no_other_order(
    ca: CertificateAuthority,
) -> None:
    issued = ca.issue("host")
    old = root_certificate(ca)
    ca.rotate()
    assert [root.signs for root in ca.roots()] == [True, False]
    assert (issued.folder / "bundle.pem").read_bytes().count(b"BEGIN") == 2
    assert [each.current for each in ca.issued()] == [False]
    with pytest.raises(FailedPrecondition, match="under way"):
        ca.rotate()
    with pytest.raises(FailedPrecondition, match="issue --all"):
        ca.finish()
    ca.issue_all()
    (ended,) = ca.finish()
    assert ended.name in old.subject.rfc4514_string()
    assert (issued.folder / "bundle.pem").read_bytes() == (ca.folder / "bundle.pem").read_bytes()
    assert (ca.folder / "bundle.pem").read_bytes().count(b"BEGIN") == 1
    before = {path: path.stat().st_ino for path in ca.folder.rglob("*")}
    assert ca.finish() == []
    assert {path: path.stat().st_ino for path in ca.folder.rglob("*")} == before, "as it was"


def test_an_end_of_a_rotation_that_was_cut_short_is_done_again(ca: CertificateAuthority) -> None:
    """Killed between the authority's own bundle and those beside the certificates."""
    issued = ca.issue("host")
    ca.rotate()
    ca.issue_all()
    both = (issued.folder / "bundle.pem").read_bytes()
    ca.finish()
    (issued.folder / "bundle.pem").write_bytes(both)
    assert ca.finish() == []
    assert (issued.folder / "bundle.pem").read_bytes() == (ca.folder / "bundle.pem").read_bytes()


def test_a_root_that_was_cut_short_while_it_was_made_is_no_hindrance(
    ca: CertificateAuthority,
) -> None:
    """Killed between the bundle and the key: the old root signs on."""
    key = (ca.folder / "ca.key").read_bytes()
    ca.issue("host")
    ca.rotate()
    (ca.folder / "ca.key").write_bytes(key)
    assert [each.current for each in ca.issued()] == [True]
    assert len(ca.finish()) == 1
    ca.rotate()


def test_nothing_lasts_longer_than_its_root(tmp_path: Path) -> None:
    ca = CertificateAuthority(tmp_path, CATALOGUE)
    root = ca.init("weft.internal", days=10)
    assert abs(ca.issue("host", days=30).expire_time - root.expire_time) < timedelta(seconds=2)
    with pytest.raises(FailedPrecondition, match="weft ca rotate"):
        CertificateAuthority(tmp_path, CATALOGUE, later(11)).issue("host")


def test_a_damaged_authority_is_told_without_its_key(ca: CertificateAuthority) -> None:
    secret = (ca.folder / "ca.key").read_text()
    (ca.folder / "ca.key").write_text(secret.replace("BEGIN PRIVATE", "BEGIN PIRATE"))
    with pytest.raises(DataDamaged) as raised:
        ca.issue("host")
    assert secret.splitlines()[1] not in str(raised.value)


def test_a_reader_sees_the_files_of_one_issue(ca: CertificateAuthority) -> None:
    """Certificate and key belong together at every moment, whoever reads while it changes."""
    files = CertificateFiles(ca.issue("host").folder)
    ends, seen, wrong = threading.Event(), set(), []

    def read() -> None:
        while not ends.is_set():
            held = files.held()
            try:
                pair = read_pair(held.certificate, held.key)
            except ValueError as error:
                wrong.append(error)
            else:
                seen.add(pair.certificate.serial_number)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for _ in range(20):
        ca.issue_all()
    ends.set()
    for reader in readers:
        reader.join()
    assert wrong == []
    assert files.held().certificate == (files.folder / "cert.pem").read_bytes()
    assert len(list(files.folder.parent.glob(".host.*"))) == 2


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("cert.pem", None, "No such file"),
        ("cert.pem", "", "can't be used"),
        ("key.pem", "-----BEGIN PRIVATE KEY-----\nAAAA\n", "the private key doesn't parse"),
        ("bundle.pem", "nothing", "can't be used"),
        ("bundle.pem", "x" * 100_000, "more than"),
    ],
)
def test_a_certificate_that_cannot_be_used_is_refused_at_the_start(
    ca: CertificateAuthority, file: str, text: str | None, problem: str
) -> None:
    path = ca.issue("host").folder / file
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    with pytest.raises(FailedPrecondition, match=problem) as raised:
        CertificateFiles(path.parent)
    assert "weft ca issue" in raised.value.message


def test_an_exposed_or_expired_certificate_is_refused_at_the_start(
    ca: CertificateAuthority,
) -> None:
    folder = ca.issue("host", days=5).folder
    CertificateFiles(folder, later(4))
    with pytest.raises(FailedPrecondition, match="expired on"):
        CertificateFiles(folder, later(6))
    (folder / "key.pem").chmod(0o640)
    with pytest.raises(FailedPrecondition, match="others can read"):
        CertificateFiles(folder)


def test_a_certificate_of_another_authority_is_refused_at_the_start(
    ca: CertificateAuthority, tmp_path: Path
) -> None:
    other = CertificateAuthority(tmp_path / "other", CATALOGUE)
    other.init("weft.internal")
    folder = ca.issue("host").folder
    shutil.copy(other.folder / "bundle.pem", folder / "bundle.pem")
    with pytest.raises(FailedPrecondition, match="no root of its bundle"):
        CertificateFiles(folder)


@pytest.mark.parametrize(
    ("services", "role"),
    [
        ((), "host"),
        (("agents",), "agents"),
        (("tools", "agents", "tools"), "agents.tools"),
        (("models", "tools", "agents"), "host"),
        (("host",), "host"),
    ],
)
def test_a_role_names_the_services_of_a_process(services: tuple[str, ...], role: str) -> None:
    assert role_of(services, CATALOGUE) == role
    process = parse_process_id(str(ProcessId("weft.internal", role)))
    assert process == ProcessId("weft.internal", role)
    assert process is not None
    acting = {each for each in CATALOGUE if process.may_act_as(each)}
    assert acting == set(services_of(role, CATALOGUE))


def test_a_role_is_made_of_services_of_the_catalogue() -> None:
    with pytest.raises(ValueError, match="there is no service agent; there are"):
        role_of(["agent"], CATALOGUE)


@pytest.mark.parametrize(
    "text", ["", "Weft.internal", "a..b", "-a", "a_b", "a/b", "a.b.", "a" * 64]
)
def test_what_can_be_no_name_of_dns_is_no_trust_domain(text: str) -> None:
    with pytest.raises(ValueError, match="trust domain"):
        check_trust_domain(text)
    assert parse_process_id(f"spiffe://{text}/process/host") is None
