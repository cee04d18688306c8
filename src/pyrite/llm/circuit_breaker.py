"""Whether a server is fit to be asked. Pure: times are passed in, in seconds of a monotonic clock."""

#: So many failures without an answer in between set a server aside.
_TOO_MANY = 3

_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 30.0


class CircuitBreaker:
    """Sets a failing server aside for a growing pause; then one request tries it, and its answer brings it back."""

    def __init__(self) -> None:
        self._failures = 0
        self._pause = 0.0
        self._until: float | None = None
        self._on_trial = False

    @property
    def aside(self) -> bool:
        return self._until is not None

    def usable(self, now: float) -> bool:
        """Whether a request may be sent: the server is well, or its pause is over and nobody is trying it."""
        return self._until is None or (now >= self._until and not self._on_trial)

    def asked(self) -> None:
        """A request is being sent. To a server that is set aside it is the trial."""
        self._on_trial = self.aside

    def answered(self) -> bool:
        """The server answered; True where that brought it back."""
        back = self.aside
        self._failures, self._pause, self._until, self._on_trial = 0, 0.0, None, False
        return back

    def abandoned(self) -> None:
        """The request was given up by us, and says nothing of the server."""
        self._on_trial = False

    def failed(self, now: float, gone: bool) -> float | None:
        """A request failed; ``gone``: no connection could be made. The pause, where it is set aside by this."""
        self._failures += 1
        if self.aside:
            if not self._on_trial:
                return None  # one of those that were under way when it was set aside
        elif not gone and self._failures < _TOO_MANY:
            return None
        self._pause = min(_LONGEST_PAUSE, self._pause * 2 or _FIRST_PAUSE)
        self._until, self._on_trial = now + self._pause, False
        return self._pause
