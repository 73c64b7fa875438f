"""Fixtures that the contract tests share."""

from tests.support.nats import harmed_nats_server, nats_server, tenant

__all__ = ["harmed_nats_server", "nats_server", "tenant"]
