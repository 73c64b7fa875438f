"""The edge: every public service on one gRPC port, with reflection and health.

Owns: the port that clients call.
Serves: the contracts of all services that live in this process.
Emits and consumes: nothing.

What HTTP clients need (JSON, server-sent events, `/v1`) joins it here.
"""
