"""Robin UI behind nginx, as docker-compose.yml's profile `robin` has it: a real nginx, our file."""

from __future__ import annotations

import asyncio
import json
import subprocess

import httpx
import pytest
from websockets.asyncio.client import connect

from accounts.models import AuditEvent
from deploy import services
from gateway_project.tests.served import ROOT, free_port, wait_until

pytestmark = [pytest.mark.served, pytest.mark.timeout(180)]
FRAME = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off; default_type text/html;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    {ours}
}}
"""


@pytest.fixture
def ui(serve, robin, member, settings, tmp_path):
    """`(url, a person with a role)`"""
    program = services.find("nginx")
    if program is None:
        pytest.skip("needs nginx: `make test` installs it")
    person = member("ROLE_ADMIN", signed_in=False)
    served = serve(
        WORKERS="1",
        TRUSTED_PROXY_HOPS="1",
        ROBIN_CLIENT_API_URL=settings.ROBIN_CLIENT_API_URL,
        ROBIN_SERVICE_API_URL=settings.ROBIN_SERVICE_API_URL,
    )
    pages = tmp_path / "pages"
    pages.mkdir()
    (pages / "index.html").write_text("<app-root>")
    (pages / "main.1a2b.js").write_text("let x")
    port, text = free_port(), (ROOT / "deploy/robin-ui.conf").read_text()
    for theirs, here in {
        "listen 8080": f"listen 127.0.0.1:{port}",
        "gateway:8000": f"127.0.0.1:{served.port}",
        "/usr/share/nginx/html": str(pages),
    }.items():
        assert text.count(theirs) == 1
        text = text.replace(theirs, here)
    folder = tmp_path / "nginx"
    folder.mkdir()
    (folder / "nginx.conf").write_text(FRAME.format(folder=folder, ours=text))
    command = [program, "-p", folder, "-c", folder / "nginx.conf", "-e", folder / "error.log"]
    with subprocess.Popen(command) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until(lambda: httpx.get(url).status_code == 200)
            yield url, person
        finally:
            process.terminate()


def test_pages_calls_and_the_live_queue_are_of_one_origin(ui):
    url, person = ui
    with httpx.Client(base_url=url, timeout=30, verify=False) as browser:
        for path in ("/", "/email/queue", "/settings/users"):  # its own router's
            page = browser.get(path)
            assert (page.status_code, page.text) == (200, "<app-root>")
            assert page.headers["X-Frame-Options"] == "DENY"
            assert page.headers["Cache-Control"] == "no-cache"
        assert browser.get("/main.1a2b.js").text == "let x"

        # As the proxy in front says it: whoever calls, and that it was by https.
        forwarded = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https"}
        answer = browser.post(
            "/api/v1/auth/login",
            json={"username": person.user.email, "password": "a good long password"},
            headers=forwarded,
        )
        assert answer.status_code == 200, answer.text
        assert answer.headers.get_list("X-Frame-Options") == ["DENY"]  # the gateway's, once
        token = answer.json()["tokens"]["accessToken"]
        for path in ("/api/v1/queue", "/queue/json?page=0"):  # the second: its production build
            assert browser.get(path, headers=bearer(token)).status_code == 200
    assert AuditEvent.objects.filter(client_ip="203.0.113.9").exists()

    async def watch():
        address = url.replace("http", "ws") + "/ws/queue"
        async with connect(address, additional_headers=bearer(token)) as socket:
            return json.loads(await asyncio.wait_for(socket.recv(), 20))

    assert "type" in asyncio.run(watch())


def bearer(token):
    return {"Authorization": f"Bearer {token}"}
