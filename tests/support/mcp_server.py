"""An MCP server that fails in every way that is asked of it; written to the protocol's text alone,
so that it starts in no time and can break every rule.

    python -I -S mcp_server.py [--tools N] [--page N] [--delay SECONDS] [--fault NAME]

It speaks the version 2025-11-25 on standard input and output.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from typing import Any

VERSION = "2025-11-25"
FOREVER = 3600
ANY: dict[str, Any] = {"type": "object"}


class Server:
    """Answers one client."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.lock = threading.Lock()
        self.cancelled: list[Any] = []
        self.extra = 0

    def send(self, message: dict[str, Any]) -> None:
        """Sends a message."""
        self.say(json.dumps({"jsonrpc": "2.0", **message}))

    def say(self, line: str) -> None:
        """Says a line, whatever it is."""
        with self.lock:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()

    def run(self) -> None:
        """Answers until the input ends."""
        for line in sys.stdin:
            message = json.loads(line)
            method = message.get("method", "")
            if method == "notifications/cancelled":
                self.cancelled.append(message["params"]["requestId"])
            elif method == "tools/call":
                threading.Thread(target=self.call, args=(message,), daemon=True).start()
            elif "id" in message and method:
                self.answer(message, method)
        if self.options.fault == "stays":
            time.sleep(FOREVER)

    def answer(self, message: dict[str, Any], method: str) -> None:
        """Answers what isn't a call of a tool."""
        if method == "initialize":
            if self.options.fault == "exits":
                sys.stderr.write(f"can't go on with {os.environ.get('SECRET', 'nothing')}\n")
                sys.exit(3)
            time.sleep(self.options.delay)
            info = {"name": "faulty", "version": "1"}
            capabilities = {"tools": {"listChanged": True}}
            result: dict[str, Any] = {
                "protocolVersion": "1999-01-01" if self.options.fault == "version" else VERSION,
                "capabilities": capabilities,
                "serverInfo": info,
            }
        elif method == "tools/list":
            result = self.page(message.get("params", {}).get("cursor"))
        else:
            self.send({"id": message["id"], "error": {"code": -32601, "message": "no such method"}})
            return
        self.send({"id": message["id"], "result": result})

    def page(self, cursor: str | None) -> dict[str, Any]:
        """A page of the list."""
        if self.options.fault == "endless":
            return {"tools": [], "nextCursor": "again"}
        tools = [{"name": name, "inputSchema": ANY, **more} for name, more in TOOLS.items()]
        tools += [
            {"name": f"extra{index}", "inputSchema": ANY}
            for index in range(self.options.tools + self.extra)
        ]
        begin = int(cursor or 0)
        size = self.options.page or len(tools)
        page: dict[str, Any] = {"tools": tools[begin : begin + size]}
        if begin + size < len(tools):
            page["nextCursor"] = str(begin + size)
        return page

    def call(self, message: dict[str, Any]) -> None:
        """Runs a tool."""
        params = message["params"]
        run = getattr(self, f"do_{params['name']}")
        result = run(params.get("arguments", {}), message)
        if result is None:
            return
        if isinstance(result, str):
            result = {"content": [{"type": "text", "text": result}]}
        self.send({"id": message["id"], "result": result})

    def do_echo(self, arguments: dict[str, Any], message: dict[str, Any]) -> Any:
        return json.dumps(arguments)

    def do_meta(self, arguments: dict[str, Any], message: dict[str, Any]) -> Any:
        return json.dumps(message["params"].get("_meta", {}))

    def do_place(self, arguments: dict[str, Any], message: dict[str, Any]) -> Any:
        place = {"cwd": os.getcwd(), "files": os.listdir("."), "environment": dict(os.environ)}
        return json.dumps({**place, "pid": os.getpid(), "group": os.getpgid(0)})

    def do_crash(self, arguments: dict[str, Any], message: dict[str, Any]) -> Any:
        os._exit(1)

    def do_hang(self, arguments: dict[str, Any], message: dict[str, Any]) -> Any:
        time.sleep(FOREVER)

    def do_progress(self, arguments: dict[str, Any], message: dict[str, Any]) -> Any:
        token = message["params"]["_meta"]["progressToken"]
        for step in range(3):
            params = {"progressToken": token, "progress": step, "total": 3}
            self.send({"method": "notifications/progress", "params": params})
        return "done"

    def do_malformed(self, arguments: dict[str, Any], message: dict[str, Any]) -> Any:
        self.say("this is no JSON")
        self.say('{"jsonrpc": "2.0", "id": "nobody\'s", "result": {}}')
        return {"content": [{"type": "nonsense"}]}

    def do_noise(self, arguments: dict[str, Any], message: dict[str, Any]) -> Any:
        for _ in range(1_000):
            self.say("noise")

    def do_huge(self, arguments: dict[str, Any], message: dict[str, Any]) -> Any:
        return "x" * arguments["characters"]

    def do_change(self, arguments: dict[str, Any], message: dict[str, Any]) -> Any:
        self.extra += 1
        self.send({"method": "notifications/tools/list_changed"})
        return "changed"

    def do_parts(self, arguments: dict[str, Any], message: dict[str, Any]) -> Any:
        resource = {"uri": "file:///a.txt", "text": "of a file", "mimeType": "text/plain"}
        return {
            "content": [
                {"type": "text", "text": "a text"},
                {"type": "image", "data": "AAAA", "mimeType": "image/png"},
                {"type": "resource_link", "uri": "https://a.example/b", "name": "b"},
                {"type": "resource", "resource": resource},
            ],
            "structuredContent": {"answer": 42},
        }

    def do_half(self, arguments: dict[str, Any], message: dict[str, Any]) -> Any:
        return {"content": [{"type": "text", "text": "half of a \ud83d"}]}

    def do_infinite(self, arguments: dict[str, Any], message: dict[str, Any]) -> Any:
        return {"content": [], "structuredContent": {"n": float("inf")}}

    def do_fails(self, arguments: dict[str, Any], message: dict[str, Any]) -> Any:
        return {"content": [{"type": "text", "text": "no such city"}], "isError": True}

    def do_refuses(self, arguments: dict[str, Any], message: dict[str, Any]) -> Any:
        self.send({"id": message["id"], "error": {"code": -32602, "message": "bad arguments"}})

    def do_spawn(self, arguments: dict[str, Any], message: dict[str, Any]) -> Any:
        # It leaves the group, and ignores what can be ignored.
        program = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(3600)"
        nothing = subprocess.DEVNULL
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", program],
            start_new_session=True,
            stdin=nothing,
            stdout=nothing,
            stderr=nothing,
        )
        return json.dumps({"child": child.pid, "pid": os.getpid()})

    def do_cancelled(self, arguments: dict[str, Any], message: dict[str, Any]) -> Any:
        return json.dumps(self.cancelled)


READ_ONLY = {"annotations": {"readOnlyHint": True, "title": "Echo"}}
NUMBER = {"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]}
TOOLS: dict[str, dict[str, Any]] = {
    "echo": READ_ONLY,
    **{name: {} for name in ("meta", "place", "crash", "hang", "progress", "malformed", "noise")},
    **{name: {} for name in ("huge", "change", "parts", "fails", "refuses", "spawn", "cancelled")},
    **{name: {} for name in ("half", "infinite")},
    "number": {"inputSchema": NUMBER},
    "get_thing": {},
    "getThing": {},
    "tool with a name that is longer than what an id of a tool may have in Weft": {},
    "deep": {"inputSchema": json.loads('{"type":"object","not":' * 100 + "{}" + "}" * 100)},
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--tools", type=int, default=0)
    parser.add_argument("--page", type=int, default=0)
    parser.add_argument("--delay", type=float, default=0)
    parser.add_argument("--fault", default="")
    Server(parser.parse_args()).run()
