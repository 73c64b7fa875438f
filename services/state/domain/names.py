"""Between a session's resource name and its stream."""

from mesh.events.store import StreamName


def session_stream(name: str) -> StreamName:
    """Stream of `tenants/{t}/agents/{a}/sessions/{s}`; the name was validated before."""
    _, tenant, _, agent, _, session = name.split("/")[:6]
    return StreamName("state", tenant, (agent, session))


def exports_stream(name: str) -> StreamName:
    """Stream that says who exported the session of that name; of an area of its own, so that
    who follows sessions isn't told, and left by what erases the session."""
    session = session_stream(name)
    return StreamName("exports", session.tenant, session.key)


def session_name(stream: StreamName | str) -> str:
    """Resource name of a session's stream."""
    _, tenant, agent, session = str(stream).split(".")
    return f"tenants/{tenant}/agents/{agent}/sessions/{session}"


def turn_name(session: str, turn: str) -> str:
    """Resource name of a turn."""
    return f"{session}/turns/{turn}"
