"""Sessions and their state.

Owns: sessions; reading, forking, watching, moving and erasing them, and verifying what the
log says.
Serves: `weft.state.v1.SessionService`, `weft.state.v1.StateService`.
Emits: SessionCreated, SessionForked, SessionImported, SessionErased. The facts of
turns on the same streams are the agents service's, which decides them with
`services.state.domain`.
Consumes: the sessions' streams, for its list of sessions.
"""
