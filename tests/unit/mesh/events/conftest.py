"""Fixtures of a real nats-server."""

from tests.support.nats import harmed_nats_server, nats_server, tenant

__all__ = ["harmed_nats_server", "nats_server", "tenant"]
