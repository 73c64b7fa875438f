"""`weft doctor`: whether all that a client needs is there."""

import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import typer

from mesh.cli.check import Check, Verdict
from mesh.cli.command import command
from mesh.cli.connection import Client
from mesh.cli.context_file import contexts_path
from mesh.cli.contracts import load_contracts
from mesh.cli.failures import CommandFailed, ExitCode, is_unimplemented
from mesh.cli.health import health
from mesh.cli.identity import who_am_i
from mesh.cli.mcp_check import mcp_servers
from mesh.cli.names import DEFAULT_TENANT
from mesh.cli.output import Output, moment, show_data
from mesh.cli.private_files import others_may_read
from mesh.cli.stalled_work import stalled_work
from mesh.private_files import config_folder

if TYPE_CHECKING:
    import grpc

    from weft.models.v1 import models_pb2

READY_SECONDS = 5.0
BODY_BYTES_MAX = 4096
EXPIRES_SOON = timedelta(days=7)
OFFLINE_PROVIDER = "builtin/"


def add_doctor(application: typer.Typer) -> None:
    """Adds `weft doctor`."""
    command(application, "doctor", example="weft doctor --address 127.0.0.1:50051")(doctor)


def doctor(client: Client) -> None:
    """Checks the server and its certificate, who you are to it, its services, its models, what
    confines functions, your key files, its MCP servers, and whether tasks or turns have stalled.

    Prints a line for each check. Exits 5 where the server can't be reached, 1 where
    another check failed.
    """
    checks: list[Check] = []
    for check in _checks(client):
        checks.append(check)
        if client.output is Output.TABLE:
            sys.stdout.write(f"{check.verdict:<5}{check.check:<36}{check.detail}\n".rstrip(" "))
            sys.stdout.flush()
    if client.output is not Output.TABLE:
        show_data(client.output, [{**asdict(c), "verdict": c.verdict.value} for c in checks])
    failed = [check.check for check in checks if check.verdict is Verdict.FAIL]
    if "server" in failed:
        raise CommandFailed(
            f"can't reach Weft at {client.address.target}", exit_code=ExitCode.UNAVAILABLE
        )
    if failed:
        raise CommandFailed(f"failed: {', '.join(failed)}")


def _checks(client: Client) -> Iterator[Check]:
    import grpc

    yield _address(client)
    yield _key_files()
    yield _key(client)
    if client.ca_file is not None:
        yield _certificate(client)
    try:
        state = health(client)
    except grpc.RpcError as error:
        yield _failed("server", client, error)
        return
    verdict = Verdict.OK if state == "SERVING" else Verdict.WARN
    yield Check("server", verdict, f"{client.address.target} answers {state}")
    yield _identity(client)
    for service in load_contracts():
        yield _service(client, service.full_name)
    if client.address.running is not None and client.address.running.http:
        yield _readiness(client.address.running.http)
    yield from _mesh(client)
    yield _events(client)
    yield _event_log(client)
    yield _models(client)
    yield _functions(client)
    yield from mcp_servers(client)
    yield from stalled_work(client)


def _address(client: Client) -> Check:
    address = client.address
    detail = f"{address.target}, {address.source}"
    if address.running is None:
        return Check("address", Verdict.OK, detail)
    if not address.running.is_alive:
        return Check("address", Verdict.WARN, f"{detail}; its process has ended")
    return Check("address", Verdict.OK, f"{detail}; process {address.running.pid}")


def _key_files() -> Check:
    """Whether only their owner reads the files with keys."""
    files = [contexts_path(), *sorted((config_folder() / "clusters").glob("*.json"))]
    open_to_others = [str(path) for path in files if others_may_read(path)]
    if open_to_others:
        return Check("key files", Verdict.WARN, f"others can read {', '.join(open_to_others)}")
    return Check("key files", Verdict.OK, str(config_folder()))


def _key(client: Client) -> Check:
    """Whether there is a key that may be sent. The other checks go on without one."""
    try:
        found = client.credential
        client.channel  # noqa: B018 - made now: it refuses to send a key in the clear
    except CommandFailed as failure:
        client.credential = None
        return Check("key", Verdict.FAIL, failure.message)
    if found is None:
        return Check("key", Verdict.WARN, "none was found; `weft context add` keeps one")
    return Check("key", Verdict.OK, f"{found.label}, from {found.source}")


def _certificate(client: Client) -> Check:
    """Whether the server's certificate lasts. Whether it is the server's, the other checks see."""
    import ssl

    from cryptography import x509

    host, _, port = client.address.target.rpartition(":")
    try:
        shown = ssl.get_server_certificate((host.strip("[]"), int(port)), timeout=READY_SECONDS)
        expires = x509.load_pem_x509_certificate(shown.encode()).not_valid_after_utc
    except (OSError, ValueError) as error:
        return Check("certificate", Verdict.FAIL, f"{client.address.target}: {error}")
    left = expires - datetime.now(UTC)
    until = f"until {expires:%Y-%m-%d %H:%M} UTC"
    if left < EXPIRES_SOON:
        return Check("certificate", Verdict.WARN, f"{until}; `weft ca issue --all` renews it")
    return Check("certificate", Verdict.OK, until)


def _identity(client: Client) -> Check:
    import grpc

    try:
        answer = who_am_i(client)
    except grpc.RpcError as error:
        client.parent = DEFAULT_TENANT
        if is_unimplemented(error):
            return Check("identity", Verdict.WARN, "the server doesn't ask who calls")
        return _failed("identity", client, error)
    if not answer.HasField("expire_time"):
        return Check("identity", Verdict.OK, answer.principal)
    left = answer.expire_time.ToDatetime(UTC) - datetime.now(UTC)
    verdict = Verdict.WARN if left < EXPIRES_SOON else Verdict.OK
    return Check("identity", verdict, f"{answer.principal}, until {moment(answer.expire_time)}")


def _failed(check: str, client: Client, error: "grpc.RpcError") -> Check:
    return Check(check, Verdict.FAIL, client.failure(error).message)


def _service(client: Client, service: str) -> Check:
    import grpc

    try:
        state = health(client, service)
    except grpc.RpcError as error:
        return _failed(service, client, error)
    verdicts = {"SERVING": Verdict.OK, "SERVICE_UNKNOWN": Verdict.WARN}
    detail = "its health isn't told here" if state == "SERVICE_UNKNOWN" else state
    return Check(service, verdicts.get(state, Verdict.FAIL), detail)


def _mesh(client: Client) -> Iterator[Check]:
    """Whether somebody serves each service: a gateway's own health is told for those, too, that
    it hands on. Who may not ask isn't told."""
    import grpc

    from weft.control.v1 import mesh_service_pb2 as pb
    from weft.control.v1.mesh_service_pb2_grpc import MeshServiceStub

    try:
        status = client.call(client.stub(MeshServiceStub).GetMeshStatus, pb.GetMeshStatusRequest())
    except grpc.RpcError:
        return
    if not status.instances:
        # A process that has no registry.
        return
    lacking = [each.name for each in status.services if not each.serving]
    if lacking:
        yield Check("mesh", Verdict.FAIL, f"nobody serves {', '.join(lacking)}")
    else:
        yield Check("mesh", Verdict.OK, f"{len(status.instances)} instances serve all services")


def _readiness(http: str) -> Check:
    """Asks `/readyz`, without a proxy: the address is this machine's."""
    from urllib.error import HTTPError
    from urllib.request import ProxyHandler, build_opener

    url = f"http://{http}/readyz"
    opener = build_opener(ProxyHandler({}))
    try:
        with opener.open(url, timeout=READY_SECONDS) as answer:
            return Check("readyz", Verdict.OK, f"{url} answers {answer.status}")
    except HTTPError as error:
        body = " ".join(error.read(BODY_BYTES_MAX).decode(errors="replace").split())
        return Check("readyz", Verdict.FAIL, f"{url} answers {error.code}: {body}")
    except (OSError, ValueError) as error:
        return Check("readyz", Verdict.FAIL, f"{url}: {error}")


def _events(client: Client) -> Check:
    """Asks for something that only the event store knows."""
    import grpc

    from weft.agents.v1 import agent_service_pb2 as pb
    from weft.agents.v1.agent_service_pb2_grpc import AgentServiceStub

    stub: AgentServiceStub = client.stub(AgentServiceStub)
    request = pb.ListAgentsRequest(parent=client.parent, page_size=1)
    try:
        client.call(stub.ListAgents, request, READY_SECONDS)
    except grpc.RpcError as error:
        return _failed("event store", client, error)
    return Check("event store", Verdict.OK, "it answers")


def _event_log(client: Client) -> Check:
    """Whether the log is the one that the server remembers. Asks for the begin of what
    `VerifyLog` streams, which says that, and lets the rest be."""
    import grpc

    from weft.state.v1 import state_service_pb2 as pb
    from weft.state.v1.state_service_pb2_grpc import StateServiceStub

    stub: StateServiceStub = client.stub(StateServiceStub)
    responses = stub.VerifyLog(pb.VerifyLogRequest(parent=client.parent), timeout=READY_SECONDS)
    try:
        problems = [problem.problem for problem in next(iter(responses)).problems]
    except grpc.RpcError as error:
        return _failed("event log", client, error)
    finally:
        responses.cancel()
    if problems:
        return Check("event log", Verdict.FAIL, "; ".join(problems))
    return Check("event log", Verdict.OK, "it is the one that was there before")


def _models(client: Client) -> Check:
    import grpc

    from weft.models.v1 import model_service_pb2 as pb
    from weft.models.v1.model_service_pb2_grpc import ModelServiceStub

    stub: ModelServiceStub = client.stub(ModelServiceStub)
    try:
        answer = client.call(stub.ListModels, pb.ListModelsRequest(parent=client.parent))
    except grpc.RpcError as error:
        return _failed("models", client, error)
    return _judge_models(list(answer.models))


def _functions(client: Client) -> Check:
    """Whether something confines functions, without which they don't run."""
    import grpc

    from weft.functions.v1 import function_service_pb2 as pb
    from weft.functions.v1.function_service_pb2_grpc import FunctionServiceStub

    stub: FunctionServiceStub = client.stub(FunctionServiceStub)
    request = pb.ListFunctionsRequest(parent=client.parent, page_size=1)
    try:
        answer = client.call(stub.ListFunctions, request, READY_SECONDS)
    except grpc.RpcError as error:
        return _failed("functions", client, error)
    if answer.sandbox == "unsafe":
        return Check("functions", Verdict.WARN, "nothing confines them: WEFT_FUNCTIONS_SANDBOX")
    if not answer.sandbox:
        return Check("functions", Verdict.WARN, answer.sandbox_problem or "nothing confines them")
    return Check("functions", Verdict.OK, f"{answer.sandbox} confines them")


def _judge_models(models: "list[models_pb2.Model]") -> Check:
    default = next((model.id for model in models if model.is_default), None)
    if default is None:
        return Check("models", Verdict.FAIL, f"{len(models)} models, none of them the default")
    if default.startswith(OFFLINE_PROVIDER):
        detail = f"{default} is the default: offline, it quotes passages; OPENAI_BASE_URL adds more"
        return Check("models", Verdict.WARN, detail)
    return Check("models", Verdict.OK, f"{default} is the default, of {len(models)}")
