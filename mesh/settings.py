"""Typed settings: one frozen class per area, filled from flag, environment and file.

A value comes from the first of these that has it: a constructor argument (a flag of
the command), the variable `WEFT_<AREA>_<FIELD>`, the table `[<area>]` of `weft.toml`,
the field's default. The file is the one that `WEFT_CONFIG` names, else `weft.toml` in
the folder that `WEFT_DATA_DIR` names, else in the working folder; it need not exist
unless `WEFT_CONFIG` names it.
"""

import os
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from mesh.errors import FieldViolation, InvalidArgument

FILE_NAME = "weft.toml"


class Section(BaseSettings):
    """Base of the settings of one area.

    A subclass names its area and declares its fields with defaults and bounds:

        class ModelSettings(Section, area="models"):
            timeout_seconds: float = Field(60, gt=0)

    Raises InvalidArgument, with a violation per field that is wrong or unknown; values
    are not repeated in it, as they may be secrets.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid")

    area: ClassVar[str]
    variables: ClassVar[Mapping[str, str]] = {}
    """Other variables than `WEFT_<AREA>_<FIELD>` from which fields' defaults are taken."""

    def __init_subclass__(cls, area: str = "", **config: Any) -> None:
        super().__init_subclass__(**config)
        if area:
            cls.area = area

    def __init__(self, **flags: Any) -> None:
        try:
            super().__init__(**flags)
        except ValidationError as error:
            violations = [self._violation(item, flags) for item in error.errors()]
        except SettingsError as error:
            # Its text names the field, and its cause would show the value.
            violations = [FieldViolation(self.area, str(error))]
        else:
            return
        text = "; ".join(f"{item.field}: {item.description}" for item in violations)
        raise InvalidArgument(f"settings: {text}", violations=violations)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The sources, in the order in which they count."""
        environment = EnvSettingsSource(settings_cls, env_prefix=cls._variable(""))
        table = _read_tables().get(cls.area, {})
        if not isinstance(table, dict):
            raise InvalidArgument.of(cls.area, f"must be a table in {config_path()}")
        return init_settings, environment, InitSettingsSource(settings_cls, table)

    @classmethod
    def _variable(cls, field: str) -> str:
        return f"WEFT_{cls.area}_{field}".upper()

    @classmethod
    def _violation(cls, item: Any, flags: Collection[str]) -> FieldViolation:
        path = ".".join([cls.area, *map(str, item["loc"])])
        field = str(item["loc"][0]) if item["loc"] else ""
        description = "unknown key" if item["type"] == "extra_forbidden" else item["msg"]
        if field in flags:
            return FieldViolation(path, description)
        named = (cls._variable(field), cls.variables.get(field, ""))
        origin = next((each for each in named if each in os.environ), str(config_path()))
        return FieldViolation(path, f"{description} (from {origin})")


def config_path() -> Path:
    """The settings file, whether it exists or not."""
    named = os.environ.get("WEFT_CONFIG")
    return Path(named) if named else Path(os.environ.get("WEFT_DATA_DIR", ".")) / FILE_NAME


def refuse_unknown_tables(areas: Collection[str]) -> None:
    """Raises InvalidArgument if the file holds something beside the tables of `areas`."""
    unknown = sorted(set(_read_tables()) - set(areas))
    if unknown:
        description = f"unknown table in {config_path()}"
        raise InvalidArgument(
            f"settings: {', '.join(unknown)}: {description}",
            violations=[FieldViolation(name, description) for name in unknown],
        )


def _read_tables() -> dict[str, Any]:
    path = config_path()
    try:
        text = path.read_bytes().decode()
        return tomllib.loads(text)
    except FileNotFoundError:
        if "WEFT_CONFIG" in os.environ:
            raise InvalidArgument.of("WEFT_CONFIG", f"no file {path}") from None
        return {}
    except OSError as error:
        raise InvalidArgument.of(str(path), f"can't be read: {error.strerror}") from None
    except ValueError as error:
        # TOMLDecodeError tells the line, UnicodeDecodeError the byte.
        raise InvalidArgument.of(str(path), f"isn't TOML: {error}") from None
