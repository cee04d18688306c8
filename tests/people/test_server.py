"""The server of the grading page: what it serves, stores and refuses."""

import http.client
import json
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyrite.errors import UserError
from pyrite.people.server import GradingServer
from pyrite.people.task import Item
from pyrite.report.pages import grade_page

ITEMS = [Item(f"query {n}?", f"title {n}", f"<b>passage</b> {n}") for n in range(3)]

Request = Callable[..., tuple[int, Any]]


class Saved(dict[int, int]):
    """The stored grades; fails to store if ``error`` is set."""

    error: Exception | None = None

    def __call__(self, position: int, grade: int) -> None:
        if self.error:
            raise self.error
        self[position] = grade


@pytest.fixture
def saved() -> Saved:
    return Saved()


@pytest.fixture
def server(saved: Saved) -> Iterator[GradingServer]:
    with GradingServer(ITEMS, [4, None, None], saved, lambda nonce: grade_page("small", nonce)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def request_(server: GradingServer) -> Request:
    """request(path, body): (status, JSON or text). ``path`` is below the token; a body makes it a POST."""

    def send(path: str, body: object = None, raw: bool = False, **headers: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
        base = "" if path.startswith("/") else f"/{server.token}/"
        data = None if body is None else str(body) if raw else json.dumps(body)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        sent = {**({"Content-Type": "application/json"} if data else {}), **names}
        connection.request("POST" if data else "GET", base + path, data, sent)
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        return response.status, json.loads(text) if "json" in response.headers["Content-Type"] else text

    return send


def test_grades_are_stored_and_can_be_changed(request_: Request, saved: Saved) -> None:
    assert request_("state") == (200, {"pairs": 3, "graded": 1, "next": 1})
    pair = {"query": "query 1?", "context": "title 1", "passage": "<b>passage</b> 1", "grade": None}
    assert request_("pairs/1") == (200, {**pair, "pairs": 3, "graded": 1, "next": 1})
    assert request_("pairs/1", {"grade": 2}) == (200, {"pairs": 3, "graded": 2, "next": 2})
    assert request_("pairs/0", {"grade": 1})[1]["next"] == 2
    assert request_("pairs/0")[1]["grade"] == 1
    assert request_("pairs/2", {"grade": 3}) == (200, {"pairs": 3, "graded": 3, "next": 3})
    assert saved == {1: 2, 0: 1, 2: 3}


def test_finish_wakes_the_command(request_: Request, server: GradingServer) -> None:
    assert not server.finished.is_set()
    assert request_("finish", {})[0] == 200
    assert server.finished.wait(5)


def test_a_grade_that_is_not_stored_is_reported(request_: Request, saved: Saved) -> None:
    saved.error = UserError("the disk is full")
    assert request_("pairs/1", {"grade": 2}) == (500, "The grade is not stored: the disk is full")
    assert request_("state")[1]["graded"] == 1
    saved.error = None
    assert request_("pairs/1", {"grade": 2})[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example:{port}", ""])
def test_requests_for_another_host_are_refused(request_: Request, server: GradingServer, host: str) -> None:
    sent = host.format(port=server.server_address[1])
    assert request_("state", Host=sent)[0] == 403
    assert request_("pairs/1", {"grade": 2}, Host=sent)[0] == 403
    assert server.grades[1] is None


def test_a_tunnel_with_another_port_is_accepted(request_: Request) -> None:
    assert request_("state", Host="localhost:9999", Origin="http://localhost:9999")[0] == 200


@pytest.mark.parametrize(
    ("path", "body", "raw", "headers", "status"),
    [
        ("/", None, False, {}, 404),
        ("/state", None, False, {}, 404),
        ("/wrong-token/state", None, False, {}, 404),
        ("/wrong-token/pairs/1", {"grade": 2}, False, {}, 404),
        ("pairs/1", {"grade": 2}, False, {"Origin": "http://evil.example"}, 403),
        ("pairs/1", {"grade": 2}, False, {"Content_Type": "text/plain"}, 415),
        ("pairs/1", {"grade": 5}, False, {}, 400),
        ("pairs/1", {"grade": True}, False, {}, 400),
        ("pairs/1", {}, False, {}, 400),
        ("pairs/1", [], False, {}, 400),
        ("pairs/1", "not JSON", True, {}, 400),
        ("pairs/1", "1" * 1001, True, {}, 413),
        ("pairs/3", {"grade": 2}, False, {}, 404),
        ("pairs/-1", None, False, {}, 404),
        ("etc/passwd", None, False, {}, 404),
    ],
)
def test_requests_that_are_not_the_pages_are_refused(
    request_: Request, saved: Saved, path: str, body: object, raw: bool, headers: dict[str, str], status: int
) -> None:
    assert request_(path, body, raw, **headers)[0] == status
    assert not saved


def test_the_page_loads_nothing_and_is_blind(server: GradingServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    connection.request("GET", f"/{server.token}/")
    response = connection.getresponse()
    html, policy = response.read().decode(), response.headers["Content-Security-Policy"]
    connection.close()
    nonce = re.search(r"script-src 'nonce-([^']+)'", policy)
    assert nonce
    assert "default-src 'none'" in policy
    assert set(re.findall(r'<(?:script|style) nonce="([^"]+)">', html)) == {nonce[1]}
    assert not re.search(r"https?:|src=|href=|@import|url\(", html)
    assert not re.search(r"\b(rank|base|chosen|score)\b", re.sub(r"<style.*?</style>", "", html, flags=re.DOTALL))
    for grade in (1, 2, 3, 4):
        assert re.search(rf'<button type="button" data-grade="{grade}" aria-keyshortcuts="{grade}"', html)


def test_a_port_in_use_is_a_user_error(server: GradingServer) -> None:
    with pytest.raises(UserError, match="--port"):
        GradingServer(ITEMS, [None] * 3, Saved(), str, server.server_address[1])
