"""Where settings come from, and what is said about wrong ones."""

from pathlib import Path

import pytest
from pydantic import Field

from mesh.errors import InvalidArgument
from mesh.runtime.settings import RuntimeSettings
from mesh.settings import Section, refuse_unknown_tables


class OvenSettings(Section, area="oven"):
    temperature_celsius: int = Field(180, ge=0, le=300)
    trays: tuple[str, ...] = ()
    api_key: int = 0


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text("")
    monkeypatch.setenv("WEFT_CONFIG", str(path))
    return path


def test_a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert OvenSettings().temperature_celsius == 180
    config.write_text("[oven]\ntemperature_celsius = 100\n")
    assert OvenSettings().temperature_celsius == 100
    monkeypatch.setenv("WEFT_OVEN_TEMPERATURE_CELSIUS", "150")
    assert OvenSettings().temperature_celsius == 150
    assert OvenSettings(temperature_celsius=200).temperature_celsius == 200


def test_the_file_lies_in_the_data_folder_where_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WEFT_CONFIG", raising=False)
    monkeypatch.setenv("WEFT_DATA_DIR", str(tmp_path))
    assert OvenSettings().temperature_celsius == 180
    (tmp_path / "weft.toml").write_text('[oven]\ntrays = ["upper", "lower"]\n')
    assert OvenSettings().trays == ("upper", "lower")


def test_settings_cannot_be_changed(config: Path) -> None:
    settings = OvenSettings()
    with pytest.raises(ValueError, match="frozen"):
        settings.temperature_celsius = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("content", "field", "description"),
    [
        ("[oven]\ntemprature = 1\n", "oven.temprature", "unknown key"),
        ("[oven]\ntemperature_celsius = 301\n", "oven.temperature_celsius", "less than or equal"),
        ('[oven]\ntemperature_celsius = "hot"\n', "oven.temperature_celsius", "valid integer"),
        ("[oven]\ntrays = [1]\n", "oven.trays.0", "valid string"),
        ("oven = 3\n", "oven", "must be a table"),
    ],
)
def test_a_wrong_value_in_the_file_is_named_with_the_file(
    config: Path, content: str, field: str, description: str
) -> None:
    config.write_text(content)
    with pytest.raises(InvalidArgument) as raised:
        OvenSettings()
    (violation,) = raised.value.violations
    assert violation.field == field
    assert description in violation.description
    assert str(config) in violation.description


def test_a_wrong_variable_is_named(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEFT_OVEN_TEMPERATURE_CELSIUS", "hot")
    with pytest.raises(InvalidArgument, match="WEFT_OVEN_TEMPERATURE_CELSIUS"):
        OvenSettings()


def test_a_variable_that_is_not_json_is_named(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEFT_OVEN_TRAYS", "[upper")
    with pytest.raises(InvalidArgument, match="trays"):
        OvenSettings()


def test_a_wrong_value_is_not_repeated(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEFT_OVEN_API_KEY", "hunter2")
    with pytest.raises(InvalidArgument) as raised:
        OvenSettings()
    assert "hunter2" not in repr((raised.value, raised.value.violations))


@pytest.mark.parametrize("content", ["[oven\n", "\xff"])
def test_a_file_that_is_not_toml_is_refused(config: Path, content: str) -> None:
    config.write_bytes(content.encode("latin-1"))
    with pytest.raises(InvalidArgument, match="isn't TOML"):
        OvenSettings()


def test_a_file_that_is_named_must_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEFT_CONFIG", str(tmp_path / "missing.toml"))
    with pytest.raises(InvalidArgument, match="no file"):
        OvenSettings()


def test_tables_of_no_known_area_are_refused(config: Path) -> None:
    config.write_text("[oven]\n[ovne]\n")
    with pytest.raises(InvalidArgument) as raised:
        refuse_unknown_tables({"oven", "fridge"})
    assert [violation.field for violation in raised.value.violations] == ["ovne"]


@pytest.mark.parametrize("variable", ["WEFT_ZONE", "WEFT_RUNTIME_ZONE", "WEFT_RUNTIME_VERSION"])
def test_what_others_are_told_of_a_process_is_checked_wherever_it_comes_from(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for wrong in ("a b", "-a", "a/b", "a" * 64, "ä"):
        monkeypatch.setenv(variable, wrong)
        with pytest.raises(InvalidArgument, match=rf"from {variable}\)"):
            RuntimeSettings()
    monkeypatch.setenv(variable, "eu-west.1_a")
    settings = RuntimeSettings()
    assert "eu-west.1_a" in (settings.zone, settings.version)
