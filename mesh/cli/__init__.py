"""The client commands of `weft`: they speak gRPC to a running server and know only its contracts.

What is slow to import (grpc, protobuf, rich) is imported inside functions, so that
`weft --help` answers at once.
"""
