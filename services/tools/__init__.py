"""The catalogue of tools, and calling them.

Owns      registered tools: the streams `tools.<tenant>.<tool>`
Serves    `weft.tools.v1.ToolService`
Emits     ToolRegistered, ToolDeleted
Consumes  its own events, to know what every instance registered
Calls     vectors, for the built-in search; functions; the gRPC servers that were registered
"""
