"""Serves the page of `build_app` on this machine: an address of its own, and files that are gone afterwards."""

from __future__ import annotations

import contextlib
import importlib
import ipaddress
import os
import socket
import tempfile
from collections.abc import Iterator, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from rca_lightning.errors import ArgumentError
from rca_lightning.prediction.app import CSS, build_app, gr
from rca_lightning.prediction.loading import LoadedModel

Middleware: Any = importlib.import_module("starlette.middleware").Middleware  # comes with gradio
_VISITORS = 8  # whose results are kept; of more the one that was idle longest drops its photograph again
_LARGEST_FILE = "256mb"


@contextlib.contextmanager
def serve(
    model: LoadedModel, *, host: str = "127.0.0.1", port: int | None = None, browser: bool = False
) -> Iterator[str]:
    """Serves the page until the context ends.

    Only files that the page has made are given out, from a folder that is removed at the end. Requests of pages of
    other sites are refused, and nothing is fetched for anybody.

    Args:
        model: predicts.
        host: address to listen at. Other machines reach the page only at another one than 127.0.0.1.
        port: to listen at; `None`: the first free one from 7860.
        browser: whether to open the page in the browser.

    Yields:
        The address of the page.

    Raises:
        ArgumentError: for a host that this machine has not, or a port that is taken.
    """
    _check_address(host, port)
    with tempfile.TemporaryDirectory(prefix="rca-app-", ignore_cleanup_errors=True) as folder:
        # gradio asks its own page whether it is there, which no proxy could answer.
        passed = ",".join(filter(None, [os.environ.get("NO_PROXY", os.environ.get("no_proxy")), host, "localhost"]))
        with _environment(GRADIO_TEMP_DIR=folder, GRADIO_ALLOWED_PATHS="", NO_PROXY=passed, no_proxy=passed):
            page = build_app(model)
            try:
                page.launch(
                    server_name=f"[{host}]" if ":" in host else host,
                    server_port=port,  # of None gradio finds a free one, also where another page starts now
                    inbrowser=browser,
                    share=False,
                    quiet=True,
                    prevent_thread_lock=True,
                    show_error=True,
                    footer_links=[],
                    run_history=False,
                    ssr_mode=False,
                    mcp_server=False,
                    pwa=False,
                    enable_monitoring=False,
                    inline=False,
                    max_file_size=_LARGEST_FILE,
                    state_session_capacity=_VISITORS,
                    theme=gr.themes.Default(font=_fonts("system-ui", "sans-serif"), font_mono=_fonts("monospace")),
                    css=CSS,
                    app_kwargs={"middleware": [Middleware(OwnPageOnly, loopback=_is_loopback(host))]},
                )
                yield str(page.local_url)
            finally:
                page.close(verbose=False)


class OwnPageOnly:
    """Refuses requests that pages of other sites make in the visitor's browser, and those to fetch an address.

    A browser sends such requests to any address that a page names, this machine's own among them; and what this server
    gives out as a file may be an address elsewhere, which it would fetch.

    Args:
        app: what answers all other requests.
        loopback: whether the server has an address of loopback, so that no name but such a one leads here.
    """

    def __init__(self, app: Any, *, loopback: bool) -> None:
        self.app = app
        self.loopback = loopback

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Answer a request."""
        if scope["type"] in ("http", "websocket") and not self._is_own(scope):
            if scope["type"] == "http":
                headers = [(b"content-type", b"text/plain; charset=utf-8")]
                await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send(
                {"type": "http.response.body", "body": b"refused: not of this page\n"}
                if scope["type"] == "http"
                else {"type": "websocket.close", "code": 1008}
            )
            return
        await self.app(scope, receive, send)

    def _is_own(self, scope: MutableMapping[str, Any]) -> bool:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.loopback and not _is_loopback(urlsplit(f"//{host}").hostname or ""):
            return False
        if origin is not None and urlsplit(origin).netloc != host:
            return False
        return not any(f"{asked}http" in scope["path"].lower() for asked in ("/file=", "/proxy="))


def _check_address(host: str, port: int | None) -> None:
    """Refuses a host that is not here and a port that is taken."""
    try:
        family = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0][0]
        _bind(family, host, 0)
    except OSError as error:
        raise ArgumentError("host", host, f"no address of this machine ({error}); give 127.0.0.1") from error
    if port is None:
        return
    try:
        _bind(family, host, port)
    except OSError as error:
        remedy = "it is taken, or not yours to listen at; give another, or leave it out"
        raise ArgumentError("port", port, remedy) from error


def _bind(family: int, host: str, port: int) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: one that has just ended is no other
        one.bind((host, port))


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _fonts(*names: str) -> list[Any]:
    """Fonts of the visitor's machine."""
    return [gr.themes.Font(name) for name in names]


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Variables of the environment for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
