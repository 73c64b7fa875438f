"""Where the master key lies; `WEFT_SECURITY_*` or `[security]` in `weft.toml`."""

import os
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from mesh.settings import Section


def configuration_dir() -> Path:
    """`$XDG_CONFIG_HOME/weft`, which is `~/.config/weft` by default."""
    home = os.environ.get("XDG_CONFIG_HOME")
    return (Path(home) if home else Path.home() / ".config") / "weft"


class SecuritySettings(Section):
    """What concerns keys. The master key itself isn't a setting: see `mesh.security.master_key`."""

    area: ClassVar[str] = "security"

    secrets_dir: Path = Field(default_factory=lambda: configuration_dir() / "secrets")
    """Folder of the master key, readable by its owner only. It lies outside the data
    folder, so that a copy of that opens nothing."""
