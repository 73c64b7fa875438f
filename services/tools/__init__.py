"""The catalogue of tools, and calling them.

Owns      registered tools, `tools.<tenant>.<tool>`; MCP servers, `mcp.<tenant>.<server>`
Serves    `weft.tools.v1.ToolService`, `McpServerService`
Emits     ToolRegistered, ToolDeleted; McpServerAdded, McpToolsListed, McpServerDeleted
Consumes  its own events, to know what every instance registered
Calls     vectors, for the built-in search; blobs, for theirs and for long results; functions; the
          gRPC servers that were registered; what `fetch` is asked to
"""
