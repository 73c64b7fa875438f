"""Times and bounds of credentials; `WEFT_AUTH_*` or `[auth]` in `weft.toml`."""

from typing import ClassVar

from pydantic import Field

from mesh.security.tokens import ACCESS_SECONDS_MAX
from mesh.settings import Section


class AuthSettings(Section):
    """How long credentials live, and how long a process trusts what it knows of them."""

    area: ClassVar[str] = "auth"

    token_seconds: int = Field(ACCESS_SECONDS_MAX, ge=10, le=ACCESS_SECONDS_MAX)
    """How long a token is valid."""
    rotation_overlap_seconds: int = Field(86_400, ge=0, le=2_592_000)
    """How long the secrets before a rotation stay valid, where the request doesn't say."""
    signing_key_days_max: float = Field(30.0, gt=0)
    """Age at which another key begins to sign tokens by itself."""
    signing_lead_seconds: float = Field(10.0, ge=5)
    """How long a new signing key is known before it signs: every process must have it."""
    last_used_interval_seconds: float = Field(600.0, gt=0)
    """How often it is noted that an API key is used."""
    denied_interval_seconds: float = Field(5.0, gt=0)
    """How often refused calls are noted in the log."""
    stale_seconds_max: float = Field(60.0, gt=0)
    """How long a process goes on with the credentials that it knows while it can't reach
    the log; then it refuses all."""
    contact_interval_seconds: float = Field(2.0, gt=0)
    """How often a process asks whether it has seen all of the log."""
    catch_up_seconds: float = Field(30.0, gt=0)
    """How long a process may take at its start to read what credentials there are."""
    verified_max: int = Field(10_000, ge=1)
    """Credentials that are remembered as verified."""
