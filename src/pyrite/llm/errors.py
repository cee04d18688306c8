"""Errors of one request to a server."""

from typing import Literal

from pyrite.errors import UserError

#: The reason of a TransientError, as metrics report it. connection: none was established. cut: it was closed before the
#: reply was complete. busy: the server is up and asks to wait. garbled: the reply cannot be parsed.
ErrorKind = Literal["connection", "cut", "timeout", "busy", "unavailable", "server", "conflict", "garbled"]

#: HTTP statuses of a rejection that concerns one request's content, such as a content filter's. Once a server has
#: accepted another request, the key, the model and the parameters are valid.
_CONTENT_STATUSES = (400, 403, 422, 451)


class TransientError(Exception):
    """A request failed, and may succeed later. ``retry_after``: the seconds that the server asks to wait."""

    def __init__(self, kind: ErrorKind, reason: str, retry_after: float | None = None):
        super().__init__(reason)
        self.kind, self.reason, self.retry_after = kind, reason, retry_after

    @property
    def responds(self) -> bool:
        """Whether the server replied, with an error."""
        return self.kind not in ("connection", "cut", "timeout")


class RequestRejected(UserError):
    """The server rejected a request, and would reject it again.

    Attributes:
        status: the HTTP status.
        words: the server's message, on one line.
        reason: the address, the status and the words, without advice.
        attempts: number of times that the request was sent.
    """

    def __init__(self, status: int, message: str, words: str, reason: str):
        super().__init__(message)
        self.status, self.words, self.reason = status, words, reason
        self.attempts = 1

    @property
    def concerns_content(self) -> bool:
        """Whether other requests may be accepted, if a server has accepted one."""
        return self.status in _CONTENT_STATUSES


class ContextLengthExceeded(RequestRejected):
    """The request does not fit the model's context window."""
