"""Tools, models and collections."""

import os
import re
from pathlib import Path

import pytest

from mesh.cli import documents
from tests.support.command_line import Weft
from tests.support.memory_platform import MemoryPlatform


def test_a_tool_is_called_with_json(weft: Weft) -> None:
    assert weft("tool", "call", "sum", "-d", '{"numbers": [1, 2]}').out == "3.0\n"


def test_a_tool_that_fails_exits_1(weft: Weft) -> None:
    ran = weft("tool", "call", "sum", "-d", "{}")
    assert (ran.code, ran.out, ran.err) == (1, "", "weft: the tool failed: numbers is missing\n")


def test_a_tools_arguments_are_read_from_a_file(weft: Weft, tmp_path: Path) -> None:
    file = tmp_path / "arguments.json"
    file.write_text('{"numbers": [4]}', encoding="utf-8")
    assert weft("tool", "call", "sum", "-d", f"@{file}").out == "4.0\n"


@pytest.mark.parametrize(
    ("method", "tool_id"),
    [
        ("acme.v1.Weather/GetForecast", "get-forecast"),
        ("acme.v1.Weather/HTTPGet", "http-get"),
        ("Weather/get_all", "get-all"),
    ],
)
def test_a_grpc_method_becomes_a_tool_named_after_it(weft: Weft, method: str, tool_id: str) -> None:
    added = weft(
        "tool", "add-grpc", "localhost:9", method, "--effect", "irreversible",
        "--requires-approval", "--timeout", "2.5", "-o", "json",
    ).data  # fmt: skip
    assert added["name"] == f"tenants/default/tools/{tool_id}"
    assert added["effect"] == "EFFECT_IRREVERSIBLE"
    assert added["requires_approval"] is True
    assert added["timeout"] == "2.500s"
    assert tool_id in weft("tool", "list").out
    assert weft("tool", "delete", tool_id).code == 0
    assert weft("tool", "show", tool_id).code == 3


def test_a_tool_is_trusted_only_where_that_is_said(weft: Weft) -> None:
    arguments = ("localhost:9", "a.B/C", "--effect", "read")
    assert weft("tool", "add-grpc", *arguments, "-o", "json").data["trust"] == "TRUST_UNTRUSTED"
    added = weft(
        "tool", "add-grpc", *arguments, "--trusted", "--scope", "pay.send", "--scope", "blobs.get"
    )
    assert re.search(r"trust +trusted", added.out)
    assert "pay.send, blobs.get" in added.out
    assert weft("tool", "delete", "c").code == 0


def test_a_tools_server_that_cant_be_reached_is_unavailable(weft: Weft) -> None:
    ran = weft("tool", "add-grpc", "localhost:1", "a.B/C", "--effect", "read")
    assert ran.code == 5
    assert "weft: localhost:1 can't be reached" in ran.err
    assert "try again in 2 s" in ran.err


@pytest.mark.parametrize(
    "arguments",
    [["localhost:9", "a.B/C"], ["localhost:9", "nonsense", "--effect", "read"]],
    ids=["no-effect", "no-method"],
)
def test_a_grpc_tool_needs_a_method_and_its_effect(weft: Weft, arguments: list[str]) -> None:
    assert weft("tool", "add-grpc", *arguments).code == 2


def test_models_are_listed_with_the_default(weft: Weft) -> None:
    header, row = weft("model", "list").out.splitlines()
    assert header.split() == [
        *("MODEL", "DEFAULT", "EMBEDS", "LABELS", "CONTEXT", "TOKENS", "PRICE", "DESCRIPTION"),
    ]
    assert row.split()[:2] == ["builtin/extractive", "yes"]


@pytest.fixture
def manuals(tmp_path: Path) -> Path:
    """A folder with documents, and with what isn't one."""
    folder = tmp_path / "manuals"
    files = {
        "guide.md": b"# Guide\nEvents are stored.",
        "deep/er/notes.TXT": b"Notes.",
        "bom.rst": "\ufeffText.".encode(),
        ".git/config.txt": b"hidden",
        ".hidden.md": b"hidden",
        "node_modules/package/readme.md": b"not ours",
        "image.png": b"\x89PNG",
        "binary.txt": b"a\0b",
        "latin.txt": b"caf\xe9",
        "empty.md": b" \n",
        "huge.txt": b"x" * (documents.FILE_BYTES_MAX + 1),
    }
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def test_ingest_makes_the_collection_and_stores_what_is_text(
    platform: MemoryPlatform, weft: Weft, manuals: Path
) -> None:
    ran = weft("collection", "ingest", "docs", str(manuals), "-o", "json")
    assert ran.code == 0
    (request,) = platform.collections.upserts
    stored = {document.uri: document.text for document in request.documents}
    assert stored == {
        "bom.rst": "Text.",
        "deep/er/notes.TXT": "Notes.",
        "guide.md": "# Guide\nEvents are stored.",
    }
    assert ran.data["document_count"] == 3
    skipped = {Path(item["path"]).name: item["reason"] for item in ran.data["skipped"]}
    assert skipped == {
        "binary.txt": "not UTF-8 text",
        "empty.md": "empty",
        "huge.txt": "larger than 1 MiB",
        "latin.txt": "not UTF-8 text",
    }
    assert "made collection docs" in ran.err
    found = weft("collection", "search", "docs", "stored", "-o", "json").data
    assert [passage["uri"] for passage in found] == ["guide.md"]
    assert "guide.md:1" in weft("collection", "search", "docs", "stored").out


def test_ingest_passes_over_what_it_would_wait_for(weft: Weft, manuals: Path) -> None:
    os.mkfifo(manuals / "pipe.txt")
    os.symlink("nowhere", manuals / "gone.txt")
    Path(os.fsdecode(os.fsencode(manuals) + b"/b\xff.md")).write_text("A name of another encoding.")
    ran = weft("collection", "ingest", "docs", str(manuals), "-o", "json")
    assert ran.data["document_count"] == 3
    skipped = {Path(item["path"]).name: item["reason"] for item in ran.data["skipped"]}
    assert skipped["pipe.txt"] == "not a regular file"
    assert skipped["gone.txt"] == "can't be read: No such file or directory"
    assert skipped["b\udcff.md"] == "its name isn't UTF-8"


def test_ingest_again_keeps_the_collection(weft: Weft, manuals: Path) -> None:
    weft("collection", "ingest", "docs", str(manuals))
    ran = weft("collection", "ingest", "docs", str(manuals / "guide.md"))
    assert ran.out == "docs: 1 documents, 1 passages stored, 0 files skipped\n"
    assert weft("collection", "show", "docs", "-o", "json").data["document_count"] == "3"


def test_batches_are_bounded_by_count_and_bytes(
    platform: MemoryPlatform, weft: Weft, tmp_path: Path
) -> None:
    for number in range(300):
        (tmp_path / f"small-{number:03}.md").write_text("x", encoding="utf-8")
    for number in range(5):
        (tmp_path / f"big-{number}.md").write_text("x" * 900_000, encoding="utf-8")
    assert weft("collection", "ingest", "docs", str(tmp_path)).code == 0
    requests = platform.collections.upserts
    assert sum(len(request.documents) for request in requests) == 305
    assert all(len(request.documents) <= documents.BATCH_DOCUMENTS_MAX for request in requests)
    assert all(request.ByteSize() < 3 * 1024 * 1024 for request in requests)
    assert len(requests) <= 6


def test_two_files_of_one_uri_are_refused_before_anything_is_stored(
    platform: MemoryPlatform, weft: Weft, tmp_path: Path
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "readme.md").write_text(folder, encoding="utf-8")
    ran = weft("collection", "ingest", "docs", str(tmp_path / "a"), str(tmp_path / "b"))
    assert ran.code == 2
    assert "would both be readme.md" in ran.err
    assert platform.collections.upserts == []


@pytest.mark.parametrize(("folder", "code"), [("nowhere", 1), (".", 2)])
def test_ingest_of_nothing_says_so(weft: Weft, tmp_path: Path, folder: str, code: int) -> None:
    assert weft("collection", "ingest", "docs", str(tmp_path / folder)).code == code


def test_a_collection_is_created_once_and_deleted(weft: Weft) -> None:
    assert weft("collection", "create", "docs", "--description", "Manuals").code == 0
    assert weft("collection", "create", "docs").code == 1
    assert "docs" in weft("collection", "list").out
    assert weft("collection", "delete", "docs").code == 0
    assert weft("collection", "search", "docs", "x").code == 3
