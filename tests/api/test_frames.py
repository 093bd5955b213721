"""A portal link in a frame, in a real Chromium: of an allowed page of another site it shows usage,
with a cookie of its own; of any other page it stays empty."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import uvicorn
from playwright.sync_api import Browser, Frame, sync_playwright
from served import MEMBER, Served, ServedFactory

CERTIFICATE = Path(__file__).parents[1] / "tls" / "example.pem"  # and its key


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("no Chromium on this machine: install Debian's package chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu"]
        )
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages_port() -> Iterator[int]:
    """An application whose page frames what its address names."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(f'<iframe src="{self.path[2:]}"></iframe>'.encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def framed(serve: ServedFactory, pages_port: int) -> Iterator[Served]:
    """Over TLS, since a frame of another site gets secure cookies only."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        served = serve(
            USAGE_WEB_URL=f"https://127.0.0.1:{listener.getsockname()[1]}",
            USAGE_FRAME_ORIGINS=f"http://localhost:{pages_port}",
        )
        server = uvicorn.Server(
            uvicorn.Config(
                served.app,
                log_level="warning",
                ssl_certfile=CERTIFICATE,
            )
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield served
        server.should_exit = True
        thread.join(10)


def frame_of(browser: Browser, page: str, served: Served, user: UUID) -> tuple[Frame, list[Any]]:
    url, _ = served.app.state.web.portal_links.make(user, None, 60)
    context = browser.new_context(ignore_https_errors=True)
    tab = context.new_page()
    tab.goto(f"{page}/?{url}", wait_until="load")
    (frame,) = tab.main_frame.child_frames
    return frame, context.cookies()


def test_a_page_of_an_allowed_origin_shows_usage(
    browser: Browser, framed: Served, pages_port: int
) -> None:
    frame, cookies = frame_of(browser, f"http://localhost:{pages_port}", framed, MEMBER)
    assert frame.url == f"{framed.settings.web_url}/usage"
    assert "Acme" in frame.inner_text("body")  # of which the user is a member
    (cookie,) = cookies
    assert (cookie["name"], cookie["httpOnly"], cookie["secure"], cookie["sameSite"]) == (
        "__Host-usage_portal",
        True,
        True,
        "None",
    )
    assert cookie["partitionKey"] == "http://localhost"


def test_a_page_of_any_other_origin_shows_nothing(
    browser: Browser, framed: Served, pages_port: int
) -> None:
    frame, _ = frame_of(browser, f"http://127.0.0.1:{pages_port}", framed, MEMBER)
    assert frame.url == "chrome-error://chromewebdata/"
    assert "Acme" not in frame.content()
