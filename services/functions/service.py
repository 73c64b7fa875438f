"""The servicer of `weft.functions.v1.FunctionService`."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from functools import partial

import orjson
import structlog
from google.protobuf.message import Message

from mesh.call import Call
from mesh.errors import FailedPrecondition, InvalidArgument, LimitExceeded, NotFound
from mesh.ids import new_id
from mesh.private_files import make_private_folder
from mesh.rpc.pages import read_page_token, write_page_token
from mesh.runtime.service import Mesh
from services.functions.answers import Answers
from services.functions.catalogue import FunctionCatalogue
from services.functions.domain import (
    Command,
    Delete,
    Deploy,
    RollBack,
    answered,
    find_version,
    function_name,
    function_stream,
)
from services.functions.invoking import Invoked, Invoker, error_of
from services.functions.logs import Logs
from services.functions.registry import FunctionRegistry
from services.functions.sandbox.backends import UNSAFE, choose
from services.functions.sandbox.launcher import Keeper
from services.functions.sandbox.pool import Pool
from services.functions.settings import FunctionsSettings
from services.functions.turns import Turns
from services.functions.versions import new_version
from weft.functions.v1 import function_service_pb2 as pb
from weft.functions.v1 import functions_pb2

FOLDER_NAME = "functions"
SCRATCH_NAME = "scratch"
PAGE_SIZE = 100
LOG_PAGE_BYTES_MAX = 2_000_000
_log = structlog.get_logger(__name__)


class FunctionsService:
    """Keeps a tenant's functions and runs them."""

    def __init__(self, mesh: Mesh, settings: FunctionsSettings) -> None:
        self._settings = settings
        self._clock = mesh.clock
        self._folder = settings.folder or mesh.data_dir / FOLDER_NAME
        events, clock = mesh.events, mesh.clock
        self._registry = FunctionRegistry(events, clock, sources_max=settings.sources_max)
        self._catalogue = FunctionCatalogue(events, catch_up_seconds=settings.catch_up_seconds)
        self._logs = Logs(self._folder, mesh.keyring, events, settings, clock)
        self._answers = Answers(
            clock, answers_max=settings.answers_max, bytes_max=settings.answers_bytes_max
        )
        mesh.keyring.on_erased(self._answers.forget_session)
        self._turns = Turns(settings)
        self._choosing = asyncio.Lock()
        self._pool: Pool | None = None
        self._invoker: Invoker | None = None
        self._sandbox = ""
        self._problem = ""

    @property
    def handlers(self) -> Mapping[str, object]:
        return {"weft.functions.v1.FunctionService": self}

    async def start(self) -> None:
        """Returns once everything that is deployed is known. What confines functions is looked
        for when it is asked for first."""
        if self._settings.sandbox == UNSAFE:
            _log.error(
                "functions_are_not_confined",
                reason="WEFT_FUNCTIONS_SANDBOX is unsafe: who may deploy a function may do all "
                "that this process's user may",
            )
        make_private_folder(self._folder)
        await self._logs.open()
        await self._catalogue.start()

    async def stop(self) -> None:
        if self._pool is not None:
            await self._pool.stop()
        await self._catalogue.stop()
        await self._logs.close()

    async def deploy_function(
        self, request: pb.DeployFunctionRequest, call: Call
    ) -> pb.DeployFunctionResponse:
        """Loads the source in the sandbox, then stores it as a version.

        Raises InvalidArgument where it doesn't load, LimitExceeded past the bound on
        functions, and what `Invoker.invoke` and `FunctionRegistry.execute` raise.
        """
        tenant = request.parent.split("/")[1]
        name = function_name(tenant, request.function_id)
        stream = function_stream(name)
        digest = _digest(request)
        version = new_version(request, self._settings, self._clock.now_ns())
        state, _ = await self._registry.load(stream)
        if request.request_id and answered(state, request.request_id, digest):
            return pb.DeployFunctionResponse(function=state.function)
        known = self._catalogue.functions(tenant)
        if state.function is None and len(known) >= self._settings.functions_max:
            raise LimitExceeded(f"a tenant has at most {self._settings.functions_max} functions")
        ended = await (await self._confined()).check(name, version, request.source, call)
        if ended.result is None:
            error = error_of(ended, version.limits)
            raise InvalidArgument.of(
                "source", f"doesn't load: {error.message}\n{error.trace}".strip()
            )
        await self._registry.store_source(name, version.sha256, request.source, call)
        command = Deploy(version, request.description, digest)
        outcome = await self._registry.execute(
            stream, command, request.request_id or new_id(), call
        )
        self._catalogue.put(stream, outcome.revision, outcome.state)
        return pb.DeployFunctionResponse(function=outcome.state.function)

    async def get_function(
        self, request: pb.GetFunctionRequest, call: Call
    ) -> pb.GetFunctionResponse:
        """NotFound where there is no such function or version."""
        function = self._function(request.name)
        response = pb.GetFunctionResponse(function=function)
        version = find_version(function, request.version)
        if request.with_source:
            response.source = await self._registry.source(request.name, version.sha256)
        return response

    async def list_functions(
        self, request: pb.ListFunctionsRequest, call: Call
    ) -> pb.ListFunctionsResponse:
        """By id, each with the version that is invoked."""
        after = read_page_token(request.page_token, request.parent)
        tenant = request.parent.split("/")[1]
        found = sorted(self._catalogue.functions(tenant), key=lambda each: each.name)
        rest = [each for each in found if each.name > after]
        page = rest[: request.page_size or PAGE_SIZE]
        with contextlib.suppress(FailedPrecondition):
            await self._confined()
        response = pb.ListFunctionsResponse(
            sandbox=self._sandbox, sandbox_problem=self._problem[:1_024]
        )
        for function in page:
            listed = response.functions.add()
            listed.CopyFrom(function)
            present = find_version(function, 0)
            del listed.versions[:]
            listed.versions.append(present)
        if len(page) < len(rest):
            response.next_page_token = write_page_token(page[-1].name, request.parent)
        return response

    async def roll_back_function(
        self, request: pb.RollBackFunctionRequest, call: Call
    ) -> pb.RollBackFunctionResponse:
        """NotFound where there is no such function or version."""
        stream = function_stream(request.name)
        command = RollBack(request.name, request.version, _digest(request))
        outcome = await self._registry.execute(
            stream, command, request.request_id or new_id(), call
        )
        self._catalogue.put(stream, outcome.revision, outcome.state)
        return pb.RollBackFunctionResponse(function=outcome.state.function)

    async def delete_function(
        self, request: pb.DeleteFunctionRequest, call: Call
    ) -> pb.DeleteFunctionResponse:
        """NotFound where there is none."""
        stream = function_stream(request.name)
        command = Delete(request.name)
        outcome = await self._registry.execute(
            stream, command, request.request_id or new_id(), call
        )
        self._catalogue.put(stream, outcome.revision, outcome.state)
        if outcome.state.function is None:
            # Else the request came again, and the function is another one by now.
            await self._logs.delete(request.name)
        return pb.DeleteFunctionResponse()

    async def invoke_function(
        self, request: pb.InvokeFunctionRequest, call: Call
    ) -> pb.InvokeFunctionResponse:
        """See Invoker.invoke; NotFound where there is no such function or version,
        InvalidArgument where the arguments aren't JSON, RequestIdReused."""
        version = find_version(self._function(request.name), request.version)
        try:
            orjson.loads(request.arguments_json or "null")
        except orjson.JSONDecodeError:
            raise InvalidArgument.of("arguments_json", "must be JSON") from None
        return await self._answers.get(request, partial(self._invoke, request, version, call))

    async def list_function_logs(
        self, request: pb.ListFunctionLogsRequest, call: Call
    ) -> pb.ListFunctionLogsResponse:
        """What is kept, oldest first. NotFound where there is no such function."""
        self._function(request.name)
        place = f"{request.name} {request.invocation}"
        after = int(read_page_token(request.page_token, place) or "0")
        size = request.page_size or PAGE_SIZE
        entries = await self._logs.page(request.name, request.invocation, after, size + 1)
        response = pb.ListFunctionLogsResponse()
        for entry in entries[:size]:
            response.entries.append(entry)
            if response.ByteSize() > LOG_PAGE_BYTES_MAX:
                break
        if len(response.entries) < len(entries):
            last = str(response.entries[-1].sequence)
            response.next_page_token = write_page_token(last, place)
        return response

    async def watch_function_logs(
        self, request: pb.WatchFunctionLogsRequest, call: Call
    ) -> AsyncGenerator[pb.WatchFunctionLogsResponse, None]:
        """Until its deadline. NotFound where there is no such function, or it is deleted."""
        self._function(request.name)
        async with aclosing(self._logs.watch(request.name, request.after_sequence)) as pieces:
            async for entries in pieces:
                yield pb.WatchFunctionLogsResponse(entries=entries)

    async def _invoke(
        self, request: pb.InvokeFunctionRequest, version: functions_pb2.FunctionVersion, call: Call
    ) -> pb.InvokeFunctionResponse:
        invoker = await self._confined()
        source = await self._registry.source(request.name, version.sha256)
        arguments = request.arguments_json or "null"
        key = request.idempotency_key
        invoked = await invoker.invoke(request.name, version, source, arguments, key, call)
        return _response(invoked, version)

    async def _execute(
        self, name: str, command: Command, request_id: str, call: Call
    ) -> functions_pb2.Function | None:
        """What the function is then; None where it was deleted."""
        stream = function_stream(name)
        outcome = await self._registry.execute(stream, command, request_id or new_id(), call)
        self._catalogue.put(stream, outcome.revision, outcome.state)
        return outcome.state.function

    async def _confined(self) -> Invoker:
        """What runs functions. FailedPrecondition where nothing confines them here."""
        async with self._choosing:
            if self._invoker is None and not self._problem:
                try:
                    # It starts other programs to see whether they work.
                    backend = await asyncio.to_thread(choose, self._settings.sandbox)
                except FailedPrecondition as error:
                    self._problem = error.message
                    _log.warning("functions_refused", reason=error.message)
                else:
                    keeper = Keeper(backend, self._folder / SCRATCH_NAME)
                    self._pool = Pool(keeper, self._settings.ready_max)
                    self._invoker = Invoker(self._pool, self._turns, self._logs)
                    self._sandbox = backend.name
        if self._invoker is None:
            raise FailedPrecondition(self._problem)
        return self._invoker

    def _function(self, name: str) -> functions_pb2.Function:
        function = self._catalogue.find(function_stream(name))
        if function is None:
            raise NotFound.of("function", name)
        return function


def _response(
    invoked: Invoked, version: functions_pb2.FunctionVersion
) -> pb.InvokeFunctionResponse:
    ended = invoked.ended
    response = pb.InvokeFunctionResponse(
        invocation=invoked.invocation,
        version=version.version,
        memory_bytes=ended.memory_bytes,
        warm=invoked.warm,
    )
    response.duration.FromNanoseconds(int(ended.duration_seconds * 1e9))
    response.cpu_time.FromNanoseconds(int(ended.cpu_seconds * 1e9))
    if ended.result is None:
        response.error.CopyFrom(error_of(ended, version.limits))
    elif not _is_json(ended.result):
        # It wrote its answer itself.
        response.error.kind = functions_pb2.FUNCTION_ERROR_KIND_RESULT
        response.error.message = "the result isn't JSON"
    else:
        response.result_json = ended.result
    return response


def _is_json(text: str) -> bool:
    try:
        orjson.loads(text)
    except (orjson.JSONDecodeError, UnicodeEncodeError):
        return False
    return True


def _digest(request: pb.DeployFunctionRequest | pb.RollBackFunctionRequest) -> bytes:
    """The hash of a request without its id, and of its type: an id that deployed a version can't
    roll one back."""
    body: Message = type(request).FromString(request.SerializeToString())
    body.ClearField("request_id")
    digest = hashlib.sha256(request.DESCRIPTOR.full_name.encode())
    digest.update(body.SerializeToString(deterministic=True))
    return digest.digest()
