"""The scoring APIs of reranker servers: requests, and replies without guessing. Pure, except ``detect_api``."""

import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from pyrite.errors import UserError
from pyrite.llm.error_bodies import quote
from pyrite.llm.errors import RequestRejected, TransientError
from pyrite.llm.pool import Pool, RetriesExhausted


class ScoringApi(NamedTuple):
    """A path, and the names of the query and of the documents in a request to it."""

    path: str
    query: str
    documents: str

    def body(self, query: str, documents: Sequence[str]) -> dict[str, Any]:
        """A request for the scores of all ``documents``, without the model's name."""
        limit = {"top_n": len(documents)} if self.documents == "documents" else {}
        return {self.query: query, self.documents: list(documents), **limit}

    def __str__(self) -> str:
        return f"{self.path} with {self.documents}"


#: In the order of detection. Paths with a version: Jina, llama.cpp and SGLang; Cohere. Then text-embeddings-inference,
#: and vLLM, which also has /rerank.
APIS = (
    ScoringApi("/rerank", "query", "documents"),
    ScoringApi("/v1/rerank", "query", "documents"),
    ScoringApi("/v2/rerank", "query", "documents"),
    ScoringApi("/rerank", "query", "texts"),
    ScoringApi("/score", "text_1", "text_2"),
)


class Scores(NamedTuple):
    """The scores of a request's documents, in their order. ``prompt_tokens``: 0 if the server does not report them."""

    values: tuple[float, ...]
    prompt_tokens: int
    latency: float
    attempts: int


def parse_scores(count: int, reply: Any, started: float, attempts: int) -> Scores:
    """Parse the scores of ``count`` documents; the other arguments as for ``Pool.request``.

    Servers return a list, or an object with a list in ``results`` or ``data``, of objects with an ``index`` and a
    ``score`` or ``relevance_score``. The list is sorted by score, so the index says which document a score belongs to.

    Raises:
        TransientError: the reply has another format, or does not have one finite score for each document.
    """
    rows = reply
    if isinstance(reply, Mapping):
        rows = reply["results"] if "results" in reply else reply.get("data")
    if not isinstance(rows, list):
        raise TransientError("garbled", f"the reply has no list of scores: {quote(str(reply))}")
    if len(rows) != count:
        raise TransientError("garbled", f"the reply has {len(rows)} scores for {count} documents: {quote(str(rows))}")
    scores: dict[int, float] = {}
    for row in rows:
        index = row.get("index") if isinstance(row, Mapping) else None
        if isinstance(index, bool) or not isinstance(index, int) or index not in range(count) or index in scores:
            raise TransientError("garbled", f"a score has no index of its own: {quote(str(row))}")
        score = row["relevance_score"] if "relevance_score" in row else row.get("score")
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise TransientError("garbled", f"a score is not a finite number: {quote(str(row))}")
        scores[index] = float(score)
    usage = reply.get("usage") if isinstance(reply, Mapping) else None
    tokens = usage.get("prompt_tokens", usage.get("total_tokens")) if isinstance(usage, Mapping) else 0
    return Scores(
        tuple(scores[index] for index in range(count)),
        tokens if isinstance(tokens, int) else 0,
        time.perf_counter() - started,
        attempts,
    )


async def detect_api(pool: Pool, query: str, documents: Sequence[str]) -> ScoringApi:
    """The first of the APIs for which the pool returns scores of a sample. It becomes the pool's test request.

    Raises:
        UserError: the pool has none of them, or does not accept the API key.
        NoServerAvailable: no server responds for ``pool.outage_seconds``.
    """
    reasons: list[str] = []
    unauthorized: RequestRejected | None = None
    for api in APIS:
        body = api.body(query, documents)
        try:
            await pool.request("", api.path, body, partial(parse_scores, len(documents)))
        except RequestRejected as error:
            unauthorized = unauthorized or (error if error.status in (401, 403) else None)
            reasons.append(f"{api}: {error.reason}")
        except RetriesExhausted as error:
            reasons.append(f"{api}: {error.reason}")
        else:
            pool.test_request = (api.path, body)
            return api
    if unauthorized:
        raise unauthorized
    settings = pool.settings
    raise UserError(
        f"No scoring API for the model {pool.model!r} at {settings.urls_setting} ({'; '.join(reasons)}). Check the "
        f"addresses and {settings.model_setting}, and that the server serves a reranker."
    )
