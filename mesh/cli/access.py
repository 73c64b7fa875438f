"""Which server a command talks to, as whom, and in which tenant."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from mesh.cli.address import Address, find_address
from mesh.cli.clusters import ClusterFile
from mesh.cli.context_file import Context, Contexts, read_contexts
from mesh.cli.credentials import Credential, credential, from_environment
from mesh.cli.failures import ExitCode, ServerLeft, usage_error
from mesh.cli.names import tenant_name
from mesh.private_files import config_folder

KNOWN_MAX = 4
"""Addresses that an error names."""


def refuse_left_behind(address: Address) -> None:
    """ServerLeft where the server has ended that the address was taken from: a key isn't
    sent to whoever listens there now."""
    if address.is_left_behind:
        raise ServerLeft(
            f"the server that listened on {address.target} has ended: a key isn't sent to"
            " whoever listens there now",
            exit_code=ExitCode.UNAVAILABLE,
            notes=[
                "Start it again with `weft up`, or name a server with --address.",
                *known_elsewhere(address.target),
            ],
        )


def known_elsewhere(target: str) -> tuple[str, ...]:
    """Where else Weft may be, for somebody who didn't reach it at the target, by what `weft up`
    left on this machine."""
    same, others = ClusterFile(config_folder() / "clusters").addresses(beside=target)
    if not (same or others):
        return ()
    named = ", ".join((same or others)[:KNOWN_MAX])
    said = "Its deployment is known here at" if same else "Known here:"
    return (f"{said} {named}; --address or WEFT_ADDRESS picks one.",)


def no_credential() -> None:
    """The credential of one who has none."""
    return


@dataclass(frozen=True, slots=True)
class Access:
    """`tenant` is `tenants/{tenant}`, empty where the key's own is meant. `find_credential`
    may raise CommandFailed. `plain_text` lets a key go to another machine unencrypted.
    `ca_file` holds the roots by which the server is known; without one the connection is in
    plain text."""

    address: Address
    tenant: str = ""
    find_credential: Callable[[], Credential | None] = no_credential
    plain_text: bool = False
    ca_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Named:
    """What a command line and its environment say of it; None where they don't."""

    address: str | None = None
    data_dir: Path | None = None
    tenant: str | None = None
    context: str | None = None
    insecure: bool | None = None
    ca_file: Path | None = None

    def access(self) -> Access:
        """What that means. CommandFailed for a context that isn't there or is another
        server's, a data folder without a server, and a tenant that can't be one."""
        name, context = self._context()
        named = self._server(context)
        address = find_address(named.address, named.data_dir)
        if named is not self:
            address = replace(address, source=f"from context {name}")
        tenant = self.tenant or context.tenant

        def find() -> Credential | None:
            refuse_left_behind(address)
            return from_environment() or _of_context(name, context) or cluster_credential(address)

        left = address.running.ca_file if address.running is not None else ""
        roots = self.ca_file or (Path(context.ca_file) if context.ca_file else None)
        roots = roots or (Path(left) if left else None)
        tenant = tenant_name(tenant) if tenant else ""
        return Access(address, tenant, find, bool(self.insecure), roots)

    def _context(self) -> tuple[str, Context]:
        """The context that is named, else the current one, unless a server is named."""
        if self.context:
            return self.context, read_contexts().get(self.context)
        if self.address or self.data_dir:
            return "", Context()
        contexts: Contexts = read_contexts()
        return contexts.current, contexts.by_name.get(contexts.current, Context())

    def _server(self, context: Context) -> "Named":
        """The server that is meant. A context's key must not go to another one."""
        own = Named(context.address or None, Path(context.data_dir) if context.data_dir else None)
        if not (context.address or context.data_dir):
            return self
        given = (self.address, self.data_dir and self.data_dir.absolute())
        if any(given) and given != (own.address, own.data_dir):
            raise usage_error(
                f"context {self.context} is for {context.address or context.data_dir}",
                "Leave out --context, or --address and --data-dir.",
            )
        return own


def _of_context(name: str, context: Context) -> Credential | None:
    return credential(context.api_key, f"context {name}") if context.api_key else None


def cluster_credential(address: Address, folder: Path | None = None) -> Credential | None:
    """The key that `weft up` left for the server at the address, in the given folder or
    where commands look for it. CommandFailed where others can read its file."""
    folder = folder or config_folder() / "clusters"
    files = ClusterFile(folder)
    cluster = address.running.cluster if address.running is not None else ""
    found = files.find(cluster=cluster) if cluster else files.find(address=address.target)
    return credential(found, str(folder)) if found is not None else None
