"""Where the master key lies; `WEFT_SECURITY_*` or `[security]` in `weft.toml`."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from mesh.private_files import config_folder
from mesh.settings import Section


class SecuritySettings(Section):
    """What concerns keys. The master key itself isn't a setting: see `mesh.security.master_key`."""

    area: ClassVar[str] = "security"

    secrets_dir: Path = Field(default_factory=lambda: config_folder() / "secrets")
    """Folder of the master key, readable by its owner only. It lies outside the data
    folder, so that a copy of that opens nothing."""
