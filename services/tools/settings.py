"""Settings of the tools service: the table `[tools]`, variables `WEFT_TOOLS_*`."""

import shlex
from pathlib import Path
from typing import ClassVar

from pydantic import Field, field_validator

from mesh.settings import Section


class ToolsSettings(Section):
    """Bounds of tools and of what is remembered about them."""

    area: ClassVar[str] = "tools"

    tools_max: int = Field(default=1_000, ge=1)
    """Most registered tools of a tenant."""
    timeout_seconds: float = Field(default=30, gt=0, le=3600)
    """How long a call of a tool may take that doesn't say so itself."""
    content_length_max: int = Field(default=65_536, ge=256, le=1_048_576)
    """Longest result, in code points; longer ones are cut, with a note."""
    response_bytes_max: int = Field(default=1_048_576, ge=1_024)
    """Largest message that is accepted from a tool's server."""
    reflection_seconds: float = Field(default=5, gt=0)
    """How long a server may take to describe a method."""
    reflection_files_max: int = Field(default=256, ge=1)
    """Most files that may describe a method."""
    reflection_bytes_max: int = Field(default=524_288, ge=1_024)
    """Most bytes of all files that describe a method."""
    channels_max: int = Field(default=64, ge=1)
    """Most servers to which connections are kept."""
    compiled_max: int = Field(default=256, ge=1)
    """Most compiled schemas and methods that are kept."""
    egress_allowed_hosts: frozenset[str] = frozenset()
    """Where they are given, tools connect to these hosts only; `*.example.com` is all below it."""
    egress_blocked_hosts: frozenset[str] = frozenset()
    """Hosts to which tools never connect."""
    egress_private_hosts: frozenset[str] = frozenset()
    """Hosts, as `host` or `host:port`, that may have addresses which aren't public."""
    fetch_seconds: float = Field(default=15, gt=0)
    """How long it may take to fetch a URL, with all its redirects."""
    fetch_bytes_max: int = Field(default=2_097_152, ge=1_024)
    """Most bytes that are fetched, as they are once decompressed."""
    fetch_redirects_max: int = Field(default=5, ge=0, le=20)
    """Most redirects that are followed."""
    catch_up_seconds: float = Field(default=30, gt=0)
    """How long the start may take to read what was registered."""
    stream_items_max: int = Field(default=1_000, ge=1)
    """Most messages of a stream that are collected to a result; the call ends behind them."""
    mcp_commands: tuple[str, ...] = ()
    """With what the command lines of MCP servers must begin that may be started; none may be
    where it is empty. As a JSON list, each written as in a shell, with the program's absolute
    path. They run as Weft's user: with `/usr/bin/node` alone whoever may add servers runs
    anything."""
    mcp_servers_max: int = Field(default=100, ge=1)
    """Most MCP servers of a tenant."""
    mcp_tools_max: int = Field(default=500, ge=1, le=1_000)
    """Most tools of an MCP server; those behind them aren't offered."""
    mcp_connections_max: int = Field(default=64, ge=1)
    """Most MCP servers to which an instance is connected at once."""
    mcp_calls_max: int = Field(default=16, ge=1)
    """Most calls of an MCP server under way at once; others wait."""
    mcp_start_seconds: float = Field(default=30, gt=0, le=600)
    """How long an MCP server may take to start, or to list its tools."""
    mcp_idle_seconds: float = Field(default=300, gt=0)
    """After how long without a call a connection to an MCP server is ended."""
    mcp_message_bytes_max: int = Field(default=4_194_304, ge=1_024)
    """Largest message that is accepted from an MCP server."""

    @field_validator("mcp_commands")
    @classmethod
    def _are_commands(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for line in value:
            words = shlex.split(line)
            if not words or not Path(words[0]).is_absolute():
                raise ValueError("each must begin with the absolute path of a program")
        return value

    @property
    def mcp_command_lines(self) -> list[list[str]]:
        """The words of `mcp_commands`."""
        return [shlex.split(line) for line in self.mcp_commands]
