"""The servers of a judge, and the names of the settings about them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

#: What the names of a pool's settings start with: those of the judge (of a cascade, the second), of the first judge of
#: a cascade, and of evaluate.judge.
Prefix = Literal["", "first_", "evaluate_"]


@dataclass(frozen=True)
class JudgeServers:
    """Servers of the same model, how to use them, and the names of their settings for messages.

    Attributes:
        urls: base addresses, without /v1.
        concurrency: maximum requests in flight per server.
        timeout: maximum seconds for one reply.
        window: the context length in tokens, if the user has set it.
        key_file: file with the API key; None: the key is in ``key_variable``.
        outage_seconds: seconds without any reply after which the servers are reported as not available.
        model_setting: the setting with the name of the model.
        prefix: what the names of the settings start with.
    """

    urls: Sequence[str]
    concurrency: int = 64
    timeout: float = 60.0
    window: int | None = None
    key_file: str | None = None
    outage_seconds: float = 600.0
    model_setting: str = "judge.model"
    prefix: Prefix = ""

    @property
    def urls_setting(self) -> str:
        return f"resources.{self.prefix}judge_urls"

    @property
    def key_file_setting(self) -> str:
        return f"resources.{self.prefix}judge_key_file"

    @property
    def has_window_setting(self) -> bool:
        """Whether resources.judge_window applies to these servers."""
        return self.prefix != "first_"

    @property
    def key_variable(self) -> str:
        """The environment variable with the API key, if ``key_file`` is None."""
        return f"PYRITE_{self.prefix.upper()}JUDGE_API_KEY"

    @property
    def set_key(self) -> str:
        """How to set the API key, as an instruction."""
        return f"Set {self.key_variable}, or set {self.key_file_setting} to a file that contains the key"
