"""The file that the server leaves for the commands of its user."""

import os
import stat
from pathlib import Path

import pytest

from mesh.cli.clusters import ClusterFile, cluster_id, settings_folder
from mesh.errors import InvalidArgument

ONE, TWO = cluster_id("one"), cluster_id("two")


def test_what_was_written_is_found_by_id_or_address(tmp_path: Path) -> None:
    file = ClusterFile(tmp_path)
    file.write(ONE, "127.0.0.1:1", "weft_1")
    file.write(TWO, "127.0.0.1:2", "weft_2")
    found = file.find(cluster=ONE)
    assert found is not None
    assert (found.id, found.address, found.api_key) == (ONE, "127.0.0.1:1", "weft_1")
    assert file.find(address="127.0.0.1:2") == file.find(cluster=TWO)
    assert file.find(address="127.0.0.1:3") is None
    assert file.find(cluster=cluster_id("three")) is None
    assert file.find() is None
    assert "weft_1" not in repr(found)


def test_of_two_at_one_address_the_later_counts(tmp_path: Path) -> None:
    file = ClusterFile(tmp_path)
    old = file.write(TWO, "127.0.0.1:1", "weft_old")
    os.utime(old, (1, 1))
    file.write(ONE, "127.0.0.1:1", "weft_new")
    found = file.find(address="127.0.0.1:1")
    assert found is not None
    assert found.api_key == "weft_new"


def test_a_deployment_may_move(tmp_path: Path) -> None:
    file = ClusterFile(tmp_path)
    file.move(ONE, "127.0.0.1:9")
    assert file.find(cluster=ONE) is None
    file.write(ONE, "127.0.0.1:1", "weft_1")
    file.move(ONE, "127.0.0.1:9")
    found = file.find(address="127.0.0.1:9")
    assert found is not None
    assert found.api_key == "weft_1"


def test_only_its_owner_may_read_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        path = ClusterFile(tmp_path / "weft").write(ONE, "127.0.0.1:1", "weft_1")
        path.chmod(0o644)
        assert ClusterFile(tmp_path / "weft").write(ONE, "127.0.0.1:1", "weft_2") == path
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"address": "x"}', "null", "\xff"])
def test_a_damaged_file_is_as_none(tmp_path: Path, content: str) -> None:
    file = ClusterFile(tmp_path)
    file.path(ONE).parent.mkdir()
    file.path(ONE).write_bytes(content.encode("latin-1"))
    assert file.find(cluster=ONE) is None
    assert file.find(address="x") is None


@pytest.mark.parametrize("cluster", ["../etc/passwd", "x", ONE.upper() + "G", ONE + "\n"])
def test_an_id_is_no_path(tmp_path: Path, cluster: str) -> None:
    with pytest.raises(InvalidArgument):
        ClusterFile(tmp_path).write(cluster, "127.0.0.1:1", "weft_1")


def test_the_folder_is_that_of_the_users_settings() -> None:
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    assert settings_folder() == Path(base) / "weft"
