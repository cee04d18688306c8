"""The server of the grading page, for one person on this machine.

It listens on the loopback interface only. Other programs and web pages on the machine can reach that too, so every
path begins with a random token, and requests for another host name (DNS rebinding) or from another origin are refused.
"""

import hmac
import json
import re
import secrets
import sys
import threading
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pyrite.errors import UserError, to_pyrite_error
from pyrite.judges.base import GRADES
from pyrite.people.task import Item

ADDRESS = "127.0.0.1"
_HOSTS = (ADDRESS, "localhost")

#: The longest body of a request, in bytes.
_MAX_BODY = 1000

_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class GradingServer(ThreadingHTTPServer):
    """Serves the pairs and stores the grades.

    Paths below ``url``: "" is the page; GET ``state`` and GET ``pairs/<position>`` return JSON; POST
    ``pairs/<position>`` with ``{"grade": 1}`` stores a grade; POST ``finish`` sets ``finished``.

    Args:
        items: the pairs, in the order of grading.
        grades: the grade of each pair; None if it has none.
        save: stores the grade of the pair at a position; called before the response.
        page: returns the HTML page for a nonce, which its style and script have.
        port: 0 for any free port.

    Raises:
        UserError: the port is in use, or this process must not use it.
    """

    daemon_threads = True

    def __init__(
        self,
        items: Sequence[Item],
        grades: Sequence[int | None],
        save: Callable[[int, int], None],
        page: Callable[[str], str],
        port: int = 0,
    ):
        self.items, self.grades, self.save, self.page = items, list(grades), save, page
        self.token = secrets.token_urlsafe(16)
        self.finished = threading.Event()
        self._lock = threading.Lock()
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            raise UserError(
                f"cannot listen on {ADDRESS}:{port} ({error.strerror}). Choose another port with --port."
            ) from None

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{ADDRESS}:{self.server_address[1]}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # the browser may end a connection at any time
            super().handle_error(request, client_address)

    def state(self) -> dict[str, int]:
        """Numbers of pairs and of graded pairs, and the position of the first pair without a grade."""
        graded = [grade is not None for grade in self.grades]
        first = graded.index(False) if False in graded else len(graded)
        return {"pairs": len(graded), "graded": sum(graded), "next": first}

    def pair(self, position: int) -> dict[str, Any]:
        """What the page shows of a pair."""
        return {**self.items[position]._asdict(), "grade": self.grades[position], **self.state()}

    def grade(self, position: int, grade: int) -> dict[str, int]:
        """Store a grade, and return the state."""
        with self._lock:
            self.save(position, grade)
            self.grades[position] = grade
            return self.state()


class _RequestError(Exception):
    """A request that is refused, with its status and the text of the response."""

    def __init__(self, status: HTTPStatus, text: str):
        super().__init__(text)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: GradingServer
    server_version = "pyrite"
    sys_version = ""
    finishes = False
    timeout = 30  # seconds without data: a client that sends nothing would hold its thread forever

    def do_GET(self) -> None:
        self._handle(self._get)

    def do_POST(self) -> None:
        self._handle(self._post)
        if self.finishes:
            self.server.finished.set()  # after the response, because the process then ends

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged: the terminal shows the address and the result."""

    def _handle(self, answer: Callable[[str], dict[str, Any] | None]) -> None:
        try:
            content = answer(self._path())
        except _RequestError as error:
            self._respond(error.status, "text/plain", str(error))
        except Exception as error:
            known = to_pyrite_error(error)
            text = f"The grade is not stored: {known}" if known else f"Error in Pyrite: {error!r}"
            self._respond(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", text)
        else:
            if content is not None:
                self._respond(HTTPStatus.OK, "application/json", json.dumps(content))

    def _get(self, path: str) -> dict[str, Any] | None:
        if path == "":
            nonce = secrets.token_urlsafe(16)
            policy = (
                f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; "
                "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
            )
            headers = {"Content-Security-Policy": policy}
            self._respond(HTTPStatus.OK, "text/html", self.server.page(nonce), headers)
            return None
        if path == "state":
            return self.server.state()
        return self.server.pair(self._position(path))

    def _post(self, path: str) -> dict[str, Any]:
        body = self._body()
        if path == "finish":
            self.finishes = True
            return self.server.state()
        position = self._position(path)
        grade = body.get("grade")
        if type(grade) is not int or grade not in GRADES:
            raise _RequestError(HTTPStatus.BAD_REQUEST, f"grade is {grade!r}; use 1, 2, 3 or 4.")
        return self.server.grade(position, grade)

    def _path(self) -> str:
        """The path below the token. Raises _RequestError if the request is not from the page."""
        host = self.headers.get("Host", "")
        if host.rpartition(":")[0] not in _HOSTS and host not in _HOSTS:
            raise _RequestError(HTTPStatus.FORBIDDEN, f"Host is {host!r}; use the address that Pyrite printed.")
        origin = self.headers.get("Origin")
        if origin not in (None, f"http://{host}"):
            raise _RequestError(HTTPStatus.FORBIDDEN, "The request is from another web page.")
        parts = self.path.split("/", 2)
        if len(parts) != 3 or not hmac.compare_digest(parts[1].encode(), self.server.token.encode()):
            raise _RequestError(HTTPStatus.NOT_FOUND, "Use the address that Pyrite printed.")
        return parts[2]

    def _position(self, path: str) -> int:
        found = re.fullmatch(r"pairs/(\d{1,9})", path, re.ASCII)
        if not found or int(found[1]) >= len(self.server.items):
            raise _RequestError(HTTPStatus.NOT_FOUND, f"There is no {path!r} here.")
        return int(found[1])

    def _body(self) -> dict[str, Any]:
        """The JSON object in the request. A form of another web page cannot send this content type."""
        if self.headers.get_content_type() != "application/json":
            raise _RequestError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Send application/json.")
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"\d{1,9}", length, re.ASCII):
            raise _RequestError(HTTPStatus.LENGTH_REQUIRED, "Send a Content-Length.")
        if int(length) > _MAX_BODY:
            raise _RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"Send at most {_MAX_BODY} bytes.")
        try:
            body = json.loads(self.rfile.read(int(length)))
        except ValueError:
            raise _RequestError(HTTPStatus.BAD_REQUEST, "The body is not JSON.") from None
        if not isinstance(body, dict):
            raise _RequestError(HTTPStatus.BAD_REQUEST, "The body is not a JSON object.")
        return body

    def _respond(self, status: HTTPStatus, kind: str, text: str, headers: dict[str, str] | None = None) -> None:
        body = text.encode()
        self.send_response(status)
        for name, value in {**_HEADERS, **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
