"""What the repository may hold, and where."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {"deploy", "generated", "mesh", "proto", "services", "tests"}
FILES = {
    *("ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md"),
    *("Makefile", "buf.yaml", "pyproject.toml", "requirements.lock", "requirements-dev.lock"),
}
HIDDEN = {".ci", ".gitignore"}
LOCKS = ("requirements.lock", "requirements-dev.lock")


def tracked() -> list[str]:
    """Paths of all files that git has, or would have with the next `git add`."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return [path for path in listed.stdout.splitlines() if (ROOT / path).is_file()]


def test_top_level_holds_what_a_newcomer_expects() -> None:
    assert {path.split("/")[0] for path in tracked()} <= FOLDERS | FILES | HIDDEN


@pytest.mark.parametrize("name", sorted(FILES | FOLDERS))
def test_top_level_is_complete(name: str) -> None:
    assert (ROOT / name).exists()


def test_no_file_names_a_path_of_this_machine() -> None:
    ours = "|".join(re.escape(str(path)) for path in (ROOT, Path.home()) if path != Path("/"))
    here = re.compile(rf"(?<![\w.])({ours})/")
    found = [
        path
        for path in tracked()
        if here.search((ROOT / path).read_bytes().decode(errors="replace"))
    ]
    assert found == []


@pytest.mark.parametrize("lock", LOCKS)
def test_locks_hold_names_versions_and_hashes_only(lock: str) -> None:
    text = (ROOT / lock).read_text()
    assert "://" not in text
    requirements = text.replace("\\\n", " ").splitlines()
    assert requirements
    for requirement in requirements:
        assert re.match(r"[a-z0-9-]+==\S+", requirement)
        assert "--hash=sha256:" in requirement


def test_both_locks_agree() -> None:
    runtime, development = (
        dict(re.findall(r"(?m)^([a-z0-9-]+)==(\S+)", (ROOT / lock).read_text())) for lock in LOCKS
    )
    assert runtime.items() <= development.items()


@pytest.mark.parametrize("path", ["mesh", "services"])
def test_no_module_is_named_for_everything_and_nothing(path: str) -> None:
    vague = re.compile(r"(^|_)(utils?|helpers?|common|misc|manager)(_|$)")
    named = [found for found in (ROOT / path).rglob("*.py") if vague.search(found.stem)]
    assert named == []


def test_no_module_has_grown_past_seeing_whole() -> None:
    lines = {
        path: len((ROOT / path).read_text().splitlines())
        for path in tracked()
        if path.startswith(("mesh/", "services/")) and path.endswith(".py")
    }
    assert {path: count for path, count in lines.items() if count > 500} == {}
