"""The event store on NATS JetStream.

`connection` speaks to NATS, `assets` makes the streams, `append` stores a commit once,
`history` reads back, `tail` follows what comes, `objects` keeps blobs; `store` puts
them together behind the port.
"""
