"""`weft blob`, against a small Weft in memory."""

import hashlib
from pathlib import Path

import pytest

from tests.support.command_line import Weft


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "report.txt"
    path.write_bytes(b"what there is to say\n" * 100_000)
    return path


def test_a_file_goes_in_and_comes_out(weft: Weft, file: Path, tmp_path: Path) -> None:
    put = weft("blob", "put", "report", str(file), "-o", "json").data
    assert put["size_bytes"] == str(file.stat().st_size)
    assert (put["content_type"], put["file_name"]) == ("text/plain", "report.txt")
    to = tmp_path / "back.txt"
    assert "wrote 2100000 bytes" in weft("blob", "get", "report", "--to", str(to)).err
    assert to.read_bytes() == file.read_bytes()
    assert [each.name for each in tmp_path.iterdir() if each.name.endswith(".new")] == []


def test_a_range_goes_to_stdout(weft: Weft, file: Path) -> None:
    weft("blob", "put", "report", str(file))
    assert weft("blob", "get", "report", "--offset", "5", "--length", "5").out == "there"


def test_stdin_is_put(weft_process: Weft) -> None:
    assert weft_process("blob", "put", "note", stdin="hello").code == 0
    assert weft_process("blob", "get", "note").out == "hello"


def test_blobs_are_listed_shown_and_deleted(weft: Weft, file: Path) -> None:
    for name in ("report-1", "report-2", "note"):
        weft("blob", "put", name, str(file), "--ttl", "3600")
    listed = weft("blob", "ls", "--prefix", "report-")
    assert [line.split()[0] for line in listed.out.splitlines()] == ["BLOB", "report-1", "report-2"]
    shown = weft("blob", "stat", "note")
    assert hashlib.sha256(file.read_bytes()).hexdigest() in shown.out
    assert "expires" in shown.out
    assert weft("blob", "rm", "note").err == "deleted blob note\n"
    assert weft("blob", "stat", "note").code == 3


def test_conditions_are_heeded(weft: Weft, file: Path) -> None:
    etag = weft("blob", "put", "report", str(file), "--if-absent", "-o", "json").data["etag"]
    assert weft("blob", "put", "report", str(file), "--if-absent").code == 1
    assert weft("blob", "put", "report", str(file), "--if-match", etag).code == 0
    assert weft("blob", "rm", "report", "--if-match", etag).code == 1
    both = weft("blob", "put", "report", str(file), "--if-match", etag, "--if-absent")
    assert both.code == 2


def test_a_file_that_cant_be_read_is_said(weft: Weft, tmp_path: Path) -> None:
    ran = weft("blob", "put", "report", str(tmp_path / "none"))
    assert ran.code == 1
    assert "can't read" in ran.err


def test_what_isnt_there_writes_no_file(weft: Weft, tmp_path: Path) -> None:
    to = tmp_path / "back.txt"
    assert weft("blob", "get", "none", "--to", str(to)).code == 3
    assert list(tmp_path.glob("*back*")) == []
