"""The data folder: its lock, its format, and whose it was."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mesh.errors import DataDamaged, FailedPrecondition
from mesh.runtime.data_dir import DataDirectory


def test_tells_who_used_it_before(tmp_path: Path) -> None:
    seen = []
    for instance in ("first", "second", "third"):
        with DataDirectory(tmp_path / "data", instance) as directory:
            seen.append(directory.previous_instance)
    assert seen == [None, "first", "second"]


def test_is_made_for_its_owner_only(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    for name in ("open", "deeper/new"):
        with DataDirectory(tmp_path / name, "one") as directory:
            assert stat.S_IMODE(directory.path.stat().st_mode) == 0o700


def test_is_refused_while_another_process_uses_it(tmp_path: Path) -> None:
    hold = (
        "import sys; from pathlib import Path; from mesh.runtime.data_dir import DataDirectory;"
        "DataDirectory(Path(sys.argv[1]), 'holder'); print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", hold, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(FailedPrecondition, match=f"in use by process {holder.pid}"):
            DataDirectory(tmp_path, "second")
        holder.kill()
    with DataDirectory(tmp_path, "second") as directory:
        assert directory.previous_instance == "holder"


@pytest.mark.parametrize("marker", [b"", b"\xff\xfe\x00", b"weft-data 2\n", b"weft-data 1 or so\n"])
def test_refuses_a_format_that_it_cannot_read(tmp_path: Path, marker: bytes) -> None:
    DataDirectory(tmp_path, "one").close()
    (tmp_path / "VERSION").write_bytes(marker)
    with pytest.raises(DataDamaged, match="format"):
        DataDirectory(tmp_path, "two")
    assert (tmp_path / "VERSION").read_bytes() == marker


def test_refuses_a_folder_that_lost_its_marker(tmp_path: Path) -> None:
    DataDirectory(tmp_path, "one").close()
    (tmp_path / "VERSION").unlink()
    with pytest.raises(DataDamaged, match="VERSION is missing"):
        DataDirectory(tmp_path, "two")


def test_leaves_a_folder_of_somebody_else_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(FailedPrecondition, match="isn't a data folder of Weft"):
        DataDirectory(tmp_path, "one")
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_settings_may_be_there_before_the_first_start(tmp_path: Path) -> None:
    (tmp_path / "weft.toml").write_text("[tools]\n")
    with DataDirectory(tmp_path, "one") as directory:
        assert directory.previous_instance is None


def test_goes_on_where_a_first_start_was_cut_short(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    (tmp_path / "VERSION.new").touch()
    with DataDirectory(tmp_path, "one") as directory:
        assert directory.previous_instance is None


def test_refuses_a_path_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FailedPrecondition, match="can't be used"):
        DataDirectory(tmp_path / "file", "one")
