"""A stub of vLLM's /v1/embeddings: it replies with a fixed vector, and records requests.

Like vLLM, it rejects requests for a model that it does not serve.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class EmbeddingStub(ThreadingHTTPServer):
    """A server for the model ``model``, whose vectors are ``[value]``. ``bodies`` has the accepted requests."""

    def __init__(self, model: str, value: float):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.model, self.value = model, value
        self.bodies: list[dict[str, Any]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: EmbeddingStub

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        found = self.path == "/v1/embeddings" and body["model"] == self.server.model
        reply: dict[str, Any] = {"error": {"message": f"{self.path}: no model {body['model']}", "code": 404}}
        if found:
            self.server.bodies.append(body)
            data = [
                {"object": "embedding", "index": i, "embedding": [self.server.value]} for i in range(len(body["input"]))
            ]
            usage = {"prompt_tokens": 1, "total_tokens": 1}
            reply = {"object": "list", "model": body["model"], "data": data, "usage": usage}
        content = json.dumps(reply).encode()
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """No log."""
