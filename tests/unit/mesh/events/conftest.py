"""A nats-server of their own: these tests look at all that it holds."""

from tests.support.nats import harmed_nats_server, nats_server, tenant

__all__ = ["harmed_nats_server", "nats_server", "tenant"]
