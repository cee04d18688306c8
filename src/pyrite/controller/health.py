"""/healthz: whether the loop still turns."""

import os
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from pyrite.errors import UserError

PORT_VARIABLE = "PYRITE_HEALTH_PORT"

#: Seconds without the end of a turn, after which the process had better be started again.
LONGEST_TURN = 60.0


def serve_from_env() -> Callable[[], None]:
    """Serve /healthz on the port that PYRITE_HEALTH_PORT names, if it does; call what this returns after each turn.

    Raises:
        UserError: it is not a port number.
    """
    text = os.environ.get(PORT_VARIABLE, "")
    last = [time.monotonic()]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            silent = time.monotonic() - last[0]
            well = silent < LONGEST_TURN
            known = self.path == "/healthz"
            body = f"{'ok' if well else 'stuck'}: the last turn ended {silent:.0f} s ago\n" if known else "not here\n"
            self.send_response((200 if well else 503) if known else 404)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    if text:
        if not text.isdecimal() or not 0 < int(text) < 65536:
            raise UserError(f"{PORT_VARIABLE} is {text!r}; give a port number such as 8080.")
        server = ThreadingHTTPServer(("", int(text)), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def turned() -> None:
        last[0] = time.monotonic()

    return turned
