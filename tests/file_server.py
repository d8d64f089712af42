"""A server of files on this machine, which may break off."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer:
    """Serves bytes by path.

    Attributes:
        files: content by path, such as "/net.pth"; any other path is answered with 404.
        status: answer instead of 200, by path.
        broken: paths that get half of their content, and then the connection ends.
        pause: seconds before each answer.
        asked: the paths that were asked for, in order.
        url: address of "/".
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.status: dict[str, int] = {}
        self.broken: set[str] = set()
        self.pause = 0.0
        self.asked: list[str] = []
        self.url = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path
        self.asked.append(path)
        time.sleep(self.pause)
        body = self.files.get(path)
        request.send_response(self.status.get(path, 404 if body is None else 200))
        request.send_header("Content-Length", str(len(body or b"")))
        request.end_headers()
        request.wfile.write((body or b"")[: len(body or b"") // 2 if path in self.broken else None])
        request.close_connection = True


@contextmanager
def serve_files() -> Iterator[FileServer]:
    """Starts a server, and ends it."""
    files = FileServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            files.answer(self)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    files.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield files
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
