"""Files of their owner alone."""

import stat
from pathlib import Path

import pytest

from mesh.private_files import config_folder, private_file, write_private
from mesh.security.settings import SecuritySettings


def test_a_file_and_its_folder_are_their_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "key"
    write_private(path, "old")
    path.chmod(0o644)
    write_private(path, "new")
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list(path.parent.iterdir()) == [path]


def test_what_fails_half_way_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_private(path, "old")
    with pytest.raises(UnicodeEncodeError), private_file(path) as file:
        file.write("new \udcff")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("named", ["", "relative"])
def test_a_relative_config_folder_is_passed_over_for_keys_too(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", named)
    assert config_folder() == tmp_path / ".config" / "weft"
    assert SecuritySettings().secrets_dir == config_folder() / "secrets"
