"""Leaving an endpoint alone that fails, and trying now and then whether it is back."""

from collections.abc import Callable

import structlog

from mesh.errors import ModelUnavailable

PAUSE_FACTOR_MAX = 16

log = structlog.get_logger(__name__)


class Breaker:
    """A circuit breaker. Closed, it lets everything pass, until `failures_max` calls in a row
    failed. Then it is open for `pause_seconds`: calls are refused at once. Then it is half
    open: one call is let through as a trial, others are refused. Its success closes, its failure
    opens it again, for twice as long each time, up to 16 times `pause_seconds`.

    Every `enter` must be followed by `succeeded`, `failed` or `left` with what it returned.
    What ends that began before the breaker last changed says nothing any more.
    """

    def __init__(
        self, name: str, failures_max: int, pause_seconds: float, now: Callable[[], float]
    ) -> None:
        self._name = name
        self._failures_max = failures_max
        self._pause_seconds = pause_seconds
        self._now = now
        self._factor = 1
        self._failures = 0
        self._open_until: float | None = None
        self._has_trial = False
        self._epoch = 0

    @property
    def is_open(self) -> bool:
        """Whether calls are refused, but for a trial."""
        return self._open_until is not None

    def check(self) -> None:
        """Raises ModelUnavailable, with the seconds until the next trial, where no call would
        be let through now."""
        if self._open_until is not None:
            left = self._open_until - self._now()
            if left > 0 or self._has_trial:
                raise ModelUnavailable(
                    "the model's endpoint failed too often; it is left alone for a while",
                    retry_seconds=max(left, 1.0),
                )

    def enter(self) -> int:
        """Lets a call through. Raises as `check`."""
        self.check()
        self._has_trial = self._open_until is not None
        return self._epoch

    def succeeded(self, epoch: int) -> None:
        """The call was answered, if only with a refusal."""
        if epoch != self._epoch:
            return
        if self._open_until is not None:
            self._change(None)
            self._factor = 1
            log.info("model_provider_back", provider=self._name)
        self._failures = 0

    def failed(self, epoch: int) -> None:
        """The call wasn't answered."""
        if epoch != self._epoch:
            return
        self._failures += 1
        if self._open_until is not None:
            self._factor = min(2 * self._factor, PAUSE_FACTOR_MAX)
        elif self._failures < self._failures_max:
            return
        pause = self._pause_seconds * self._factor
        self._change(self._now() + pause)
        log.warning("model_provider_left_alone", provider=self._name, pause_seconds=pause)

    def left(self, epoch: int) -> None:
        """The call was given up by its caller, which says nothing."""
        if epoch == self._epoch:
            self._has_trial = False

    def _change(self, open_until: float | None) -> None:
        self._open_until = open_until
        self._has_trial = False
        self._failures = 0
        self._epoch += 1
