"""The step around a provider's call that charges it."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from mesh.call import Call
from mesh.errors import InvalidArgument, PermissionDenied
from services.models import domain
from services.models.budgets.budgets import Budgets
from services.models.budgets.charging import Charge
from services.models.budgets.usage import Caller
from services.models.domain import Price
from services.models.provider_settings import BUILTIN
from services.models.routing import Candidate
from services.models.settings import ModelsSettings
from services.models.tokens import input_tokens_estimate, tokens_estimate
from weft.models.v1 import model_service_pb2 as pb
from weft.models.v1 import models_pb2

AGENTS = "agents"
TOKENS_PER_MESSAGE = 8
"""What providers write around each message."""


def price_of(settings: ModelsSettings, model: str) -> Price | None:
    """What the settings say that a model costs, by its id; None where they don't. Where one
    of the prices is missing it is 0, that of cached tokens that of others."""
    if model.startswith(f"{BUILTIN}/"):
        # Weft's own run here.
        return Price()
    known = settings.model(model)
    read, written = known.input_price_usd_micros_per_mtok, known.output_price_usd_micros_per_mtok
    if read is None and written is None:
        return None
    cached = known.cached_input_price_usd_micros_per_mtok
    return Price(read or 0, written or 0, (read or 0) if cached is None else cached)


def check_charged(request: pb.GenerateRequest, call: Call) -> None:
    """Raises PermissionDenied where somebody else than Weft's agents says for which session it
    is: nobody spends what is another's. InvalidArgument where it is in another tenant."""
    if not request.charged_session:
        return
    if call.caller != AGENTS:
        raise PermissionDenied("charged_session is for Weft's own agents")
    if domain.parent_of(request.charged_session) != request.parent:
        raise InvalidArgument.of("charged_session", f"must be in {request.parent}")


async def charged_stream(
    budgets: Budgets,
    candidate: Candidate,
    request: pb.GenerateRequest,
    output_tokens_max: int,
    seconds_max: float,
) -> AsyncGenerator[str | pb.GenerateResponse, None]:
    """The provider's `stream` of the candidate, charged. A call that a budget covers and that
    has no bound of its own gets one, `output_tokens_max`: else nothing could be set aside for
    it. Raises as `Provider.stream` and `Budgets.charge` do."""
    if budgets.covers(request.parent, request.charged_session):
        request = _bounded(request, output_tokens_max)
    charge = await budgets.charge(
        Caller(request.parent, request.charged_session, candidate.id),
        input_tokens_estimate(request) + TOKENS_PER_MESSAGE * len(request.conversation.messages),
        request.parameters.output_tokens_max,
        seconds_max,
    )
    with charge:
        parts = candidate.provider.stream(request, candidate.model, seconds_max, charge.sent)
        async with aclosing(parts):
            async for part in parts:
                if isinstance(part, str):
                    charge.wrote(part)
                else:
                    charge.finish(part.usage)
                yield part


def _bounded(request: pb.GenerateRequest, output_tokens_max: int) -> pb.GenerateRequest:
    if request.parameters.output_tokens_max:
        return request
    bounded = pb.GenerateRequest()
    bounded.CopyFrom(request)
    bounded.parameters.output_tokens_max = output_tokens_max
    return bounded


async def charge_texts(
    budgets: Budgets, candidate: Candidate, parent: str, texts: Sequence[str], seconds_max: float
) -> Charge:
    """Sets aside what it takes to embed texts. Raises as `Budgets.charge` does."""
    input_tokens = sum(map(tokens_estimate, texts))
    return await budgets.charge(Caller(parent, "", candidate.id), input_tokens, 0, seconds_max)


def say_price(model: models_pb2.Model, price: Price | None) -> None:
    """Fills in what a model costs, where that is known."""
    if price is not None:
        model.price.input_micro_usd = price.input_micro_usd
        model.price.output_micro_usd = price.output_micro_usd
        model.price.cached_input_micro_usd = price.cached_input_micro_usd
