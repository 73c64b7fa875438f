"""The examples in other languages, built from their sources, their locks and `proto/`; grpcurl.

What is downloaded or compiled is kept under `build/`, by the hash of what it is made from.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from tests.support.processes import ROOT

EXAMPLES = ROOT / "tests" / "examples"
GOOGLE_APIS = sysconfig.get_path("purelib")
"""The folder of google/api/annotations.proto and what it imports."""
GRPCURL = "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.4"
GO_MODULE = "weft.example/mesh-client"
GO_CONTRACTS = (
    "weft/errors/v1/errors.proto",
    "weft/options/v1/options.proto",
    "weft/tools/v1/secrets.proto",
    "weft/tools/v1/tools.proto",
    "weft/tools/v1/tool_service.proto",
)
BUILD_SECONDS_MAX = 500.0
UNREACHED = (
    *("ENOTFOUND", "ECONNREFUSED", "ETIMEDOUT", "EAI_AGAIN", "ENETUNREACH", "ECONNRESET"),
    *("dial tcp", "no such host", "i/o timeout", "connection refused", "connection reset"),
    *("TLS handshake timeout", "GOPROXY=off", "EOF", "requires go >="),
)
"""How the tools say that a registry, or a newer tool, isn't to be had here."""


@pytest.fixture(scope="session")
def node_example() -> Path:
    """The folder of the Node example with its packages; skips without node or a registry."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("node and npm aren't installed")
    sources = EXAMPLES / "node"

    def install(folder: Path) -> None:
        _made([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], folder)

    made = _once("node", sources, [sources / "package-lock.json"], install)
    for source in sources.glob("*.js"):
        shutil.copy(source, made)
    return made


@pytest.fixture(scope="session")
def mcp_servers() -> Path:
    """A folder with the reference MCP servers in `node_modules`; skips without node or a
    registry."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("node and npm aren't installed")
    sources = EXAMPLES / "mcp"

    def install(folder: Path) -> None:
        _made([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], folder)

    return _once("mcp", sources, [sources / "package-lock.json"], install)


@pytest.fixture(scope="session")
def go_example() -> Path:
    """The program of the Go example; skips without Go or a registry."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("Go isn't installed")
    sources = EXAMPLES / "go"
    contracts = [ROOT / "proto" / contract for contract in GO_CONTRACTS]

    def build(folder: Path) -> None:
        tools = folder / "bin"
        environment = {**os.environ, "GOTOOLCHAIN": "local", "GOBIN": str(tools), "GOFLAGS": ""}
        _made([go, "install", "tool"], folder, environment)
        mapped = [
            f"--{plugin}_opt=M{contract}={GO_MODULE}/{Path(contract).parent}"
            for contract in GO_CONTRACTS
            for plugin in ("go", "go-grpc")
        ]
        _made(
            [
                *(sys.executable, "-m", "grpc_tools.protoc", "-I", ROOT / "proto"),
                *("-I", GOOGLE_APIS, "--go_out=.", "--go-grpc_out=."),
                *(f"--{plugin}_opt=module={GO_MODULE}" for plugin in ("go", "go-grpc")),
                *(*mapped, *GO_CONTRACTS),
            ],
            folder,
            {**environment, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"},
        )
        built = [go, "build", "-mod=readonly", "-buildvcs=false", "-o", "mesh-client", "."]
        _made(built, folder, environment)

    return _once("go", sources, [*sources.iterdir(), *contracts], build) / "mesh-client"


@pytest.fixture(scope="session")
def grpcurl() -> Path:
    """The tool, built once from its sources; skips without Go or a registry."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("grpcurl is built with Go, which isn't installed")
    version = GRPCURL.rpartition("@")[2]
    binary = ROOT / "build" / "grpcurl" / version / "grpcurl"
    if not binary.exists():
        _made([go, "install", GRPCURL], ROOT, {**os.environ, "GOBIN": str(binary.parent)})
    return binary


def _once(name: str, sources: Path, inputs: Sequence[Path], make: Callable[[Path], None]) -> Path:
    """The folder in which `make` has worked on a copy of the sources, now or before."""
    digest = hashlib.sha256()
    for path in sorted(inputs):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    made = ROOT / "build" / "examples" / name / digest.hexdigest()[:16]
    if not made.exists():
        partial = made.with_suffix(f".{os.getpid()}")
        shutil.rmtree(made.parent, ignore_errors=True)
        try:
            ignored = shutil.ignore_patterns("node_modules")
            shutil.copytree(sources, partial, ignore=ignored)
            make(partial)
            partial.replace(made)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return made


def _made(
    command: Sequence[str | Path], folder: Path, environment: Mapping[str, str] | None = None
) -> None:
    """Runs a step; skips where something can't be fetched, else AssertionError with what the
    step said."""
    try:
        done = subprocess.run(
            [str(part) for part in command],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=BUILD_SECONDS_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"{Path(command[0]).name} took longer than {BUILD_SECONDS_MAX:g} s")
    if done.returncode and any(word in done.stderr for word in UNREACHED):
        pytest.skip(f"{Path(command[0]).name} can't reach its registry, or is too old")
    assert done.returncode == 0, done.stdout + done.stderr
