"""A server like OpenAI's on loopback that answers well, badly, slowly or not at all, and counts."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """One response.

    Attributes:
        status: of HTTP.
        body: bytes as they are, or what becomes JSON; None is a completion that tells what was shown, or
            nothing with any other status than 200.
        headers: further ones.
        wait: seconds before it.
        cut: close the connection before it, or within its body.
        drip: seconds between the bytes of the body.
    """

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    wait: float = 0
    cut: str | None = None
    drip: float = 0


def completion(text: str | None, reason: str = "stop") -> dict[str, Any]:
    return {
        "id": "1",
        "object": "chat.completion",
        "model": "as-served",
        "choices": [{"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107},
    }


def seen(body: dict[str, Any]) -> str:
    """Return a text that tells what a request showed from what others did."""
    shown = json.dumps(body["messages"][0]["content"][:-1], sort_keys=True)
    return f"seen {hashlib.sha256(shown.encode()).hexdigest()[:8]}"


class ChatServer(ThreadingHTTPServer):
    """Gives the replies of ``plan`` in the order of the requests, then well-formed ones."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.plan: list[Reply] = []
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.released = threading.Event()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up waiting is no news."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ChatServer

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.bodies.append(body)
            server.headers.append({name.lower(): value for name, value in self.headers.items()})
            server.paths.append(self.path)
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
            reply = server.plan.pop(0) if server.plan else Reply()
        server.released.wait(reply.wait)
        with server.lock:
            server.at_once -= 1
        content = reply.body
        if content is None:
            content = completion(seen(body)) if reply.status == 200 else b""
        sent = content if isinstance(content, bytes) else json.dumps(content).encode()
        if reply.cut != "before":
            self.send_response(reply.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(sent)))
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self._write(sent[: len(sent) // 2] if reply.cut == "within" else sent, reply.drip)
        if reply.cut:
            self.close_connection = True

    def _write(self, content: bytes, drip: float) -> None:
        if not drip:
            self.wfile.write(content)
            return
        for byte in content:
            if self.server.released.wait(drip):
                return
            self.wfile.write(bytes([byte]))

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@contextmanager
def chat_server() -> Iterator[ChatServer]:
    server = ChatServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
