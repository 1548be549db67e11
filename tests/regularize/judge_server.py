"""A judge's server, with faults to order; it counts what it is asked and what it has answered."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FENCED = re.compile(r"\[ANSWER (\w+)\]\n(.*?)\n\[END OF ANSWER \1\]", re.DOTALL)


@dataclass(frozen=True)
class Act:
    """What the server does with a request."""

    says: str = ""
    """The message's content."""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    """Instead of a chat completion."""
    type: str = "application/json"
    wait: float = 0.0
    cut: bool = False
    """Send half of the body and hang up."""
    finish: str = "stop"

    @property
    def whole(self) -> bool:
        """Whether it is an answer that a client can use."""
        return self.status == 200 and self.raw is None and not self.cut


class JudgeServer:
    """Answers on loopback until it is closed, or after so many answers dies."""

    def __init__(
        self, act: Callable[[str, int], Act], *, port: int = 0, dies_after: int | None = None
    ) -> None:
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.at_once = self.most_at_once = 0
        self._act, self._dies_after, self._lock = act, dies_after, threading.Lock()
        self._open: set[socket.socket] = set()
        self.dead = False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                outer._open.add(self.connection)

            def finish(self) -> None:
                outer._open.discard(self.connection)
                super().finish()

            def do_GET(self) -> None:
                self._send(json.dumps({"object": "list", "data": [{"id": "judge"}]}).encode())

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer._answer(self, body)

            def _send(self, body: bytes, act: Act | None = None, status: int | None = None) -> None:
                act = act or Act()
                self.send_response(status or act.status)
                self.send_header("Content-Type", act.type)
                self.send_header("Content-Length", str(len(body)))
                for name, value in act.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if act.cut else body)
                self.wfile.flush()
                self.close_connection = act.cut

            def log_message(self, *_: object) -> None:
                pass

        ThreadingHTTPServer.allow_reuse_address = True
        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def _answer(self, handler: Any, body: dict[str, Any]) -> None:
        text = body["messages"][-1]["content"]
        found = FENCED.search(text)
        answer = found[2] if found else text
        with self._lock:
            if self.dead:
                return
            self.bodies.append(body)
            self.headers.append({name.lower(): value for name, value in handler.headers.items()})
            self.asked[answer] += 1
            act = self._act(answer, self.asked[answer])
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        time.sleep(act.wait)
        with self._lock:  # what is sent is counted, whatever dies meanwhile
            self.at_once -= 1
            if self.dead:
                return
            message = {"role": "assistant", "content": act.says}
            choice = {"index": 0, "message": message, "finish_reason": act.finish}
            whole = json.dumps(
                {
                    "id": "1", "object": "chat.completion", "created": 0, "model": "judge",
                    "choices": [choice],
                    "usage": {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107},
                }
            ).encode()  # fmt: skip
            handler._send(whole if act.raw is None else act.raw, act)
            self.answered[answer] += act.whole
            if self._dies_after is not None and self.answered.total() >= self._dies_after:
                threading.Thread(target=self.close).start()
                self.dead = True

    def close(self) -> None:
        """Hang up on everybody."""
        self.dead = True
        self._server.shutdown()
        self._server.server_close()
        for one in list(self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> JudgeServer:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.dead:
            self.close()


def score_of(answer: str) -> int:
    """The true score of the answers in these tests, which end in a number."""
    return 1 + int(answer.split()[-1]) * 7 % 5


def honest(answer: str, nth: int) -> Act:
    """A sound judge."""
    return Act(f"It is as it is.\nSCORE: {score_of(answer)}")
