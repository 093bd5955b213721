"""People who look at the usage page while a night is rolled up and published."""

from __future__ import annotations

import asyncio
import random
import socket
import subprocess
import sys
import time
from contextlib import suppress
from http import HTTPStatus
from typing import Any

import requests

from bench.shape import READERS
from usage_pipeline.infra.duckdb_files import open_duckdb
from usage_pipeline.settings import load_settings

HOST = "127.0.0.1"
THINK_SECONDS = 5.0
START_SECONDS = 60


def during_a_night(day: str) -> dict[str, Any]:
    """Each reader, a user each, opens the page of the month, thinks, and opens it again, until the
    night is over. Seconds are from the request until the last byte.

    The environment lets readers pick whom to be.
    """
    import psutil

    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "usage_pipeline"]
    served = subprocess.Popen([*words, "web", "--port", str(port)], stdout=subprocess.DEVNULL)
    try:
        cookies = _sign_in(f"http://{HOST}:{port}")
        process = psutil.Process(served.pid)
        before = process.cpu_times()
        night = subprocess.Popen([*words, "rollup", "--start", day], stdout=subprocess.DEVNULL)
        started = time.perf_counter()
        waited, size = asyncio.run(_read(port, cookies, night))
        passed = time.perf_counter() - started
        cpu = process.cpu_times()
        if night.wait():
            raise RuntimeError("the night failed")
        spent = cpu.user + cpu.system - before.user - before.system
        peak = process.memory_info().rss
    finally:
        served.terminate()
        served.wait()
    waited.sort()
    return {
        "seconds": waited[int(len(waited) * 0.95)],
        "cpu_seconds": spent / len(waited),
        "peak_bytes": peak,
        "median": waited[len(waited) // 2],
        "worst": waited[-1],
        "pages": len(waited),
        "pages_a_second": len(waited) / passed,
        "page_bytes": size,
    }


def _sign_in(url: str) -> list[str]:
    settings = load_settings()
    with open_duckdb(settings, settings.snapshot_path, read_only=True) as db:
        users = db.execute(
            "select distinct user_id from usage_summary where scope = 'user' and"
            f" time_window = 'month' order by hash(user_id) limit {READERS}"
        ).fetchall()
    for _ in range(10 * START_SECONDS):
        with suppress(requests.ConnectionError):
            requests.get(f"{url}/healthz", timeout=5)
            break
        time.sleep(0.1)
    cookies = []
    for (user,) in users:
        answer = requests.post(
            f"{url}/sign-in/development",
            {"user_id": str(user)},
            headers={"Origin": url},
            allow_redirects=False,
            timeout=30,
        )
        cookies.append("; ".join(f"{name}={value}" for name, value in answer.cookies.items()))
    if not cookies or not all(cookies):
        raise RuntimeError("nobody could sign in")
    return cookies


async def _read(
    port: int, cookies: list[str], night: subprocess.Popen[bytes]
) -> tuple[list[float], int]:
    waited: list[float] = []
    sizes: list[int] = []

    async def reader(cookie: str, draw: random.Random) -> None:
        request = (
            f"GET /usage?period=month HTTP/1.1\r\nHost: {HOST}:{port}\r\nCookie: {cookie}\r\n\r\n"
        ).encode()
        await asyncio.sleep(draw.uniform(0, 2 * THINK_SECONDS))
        while night.poll() is None:
            began = time.perf_counter()
            stream, writer = await asyncio.open_connection(HOST, port)
            writer.write(request)
            head = (await stream.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            if f" {HTTPStatus.OK} " not in head.partition("\r\n")[0]:
                raise RuntimeError(head)
            length = int(head.partition("content-length:")[2].partition("\r\n")[0])
            await stream.readexactly(length)
            waited.append(time.perf_counter() - began)
            sizes.append(length)
            writer.close()
            await asyncio.sleep(draw.uniform(0, 2 * THINK_SECONDS))

    await asyncio.gather(
        *(reader(cookie, random.Random(number)) for number, cookie in enumerate(cookies))
    )
    return waited, max(sizes)
