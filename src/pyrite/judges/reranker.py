"""A reranker (cross-encoder) behind a scoring API as the judge."""

import asyncio
import hashlib
import json
from functools import partial
from typing import Any, Self

from pyrite import metrics
from pyrite.judges import register
from pyrite.judges.base import Judgment, Missing, Pair, expected_of_score
from pyrite.judges.server import ServerJudge
from pyrite.llm.pool import Pool, RetriesExhausted
from pyrite.llm.scoring import ScoringApi, detect_api, parse_scores
from pyrite.spec import ConfiguredJudge, RerankerJudgeSpec

#: Increment when the same model and templates would give other scores, so that cached judgments are not used.
_VERSION = 1

#: A passage that is too long for the server is cut to this share, again and again, but not below this many characters.
_SHORTER, _MIN_CHARACTERS = 0.75, 40

_SAMPLE_QUERY = "What is the capital of France?"
_SAMPLE_PASSAGES = ("Paris is the capital and the largest city of France.", "Tea is made from dried leaves.")


@register("reranker")
class RerankerJudge(ServerJudge):
    """Grades by a relevance score, one pair per request: a query's pairs are judged in sequence.

    A score is between 0 and 1 on most servers, and any number on others. Without a calibration, 0 is grade 1 and 1 is
    grade 4 (``judges.calibration.final``). The fingerprint covers the model's name and the templates. It is known
    before any request, so it does not cover the server's API.
    """

    def __init__(self, pool: Pool, spec: RerankerJudgeSpec):
        super().__init__(pool)
        self.fingerprint = fingerprint(spec)
        self._spec = spec
        self._detecting = asyncio.Lock()
        self._api: ScoringApi | None = None

    @classmethod
    def open(cls, judge: ConfiguredJudge) -> Self:
        """Open the judge. Sends no request.

        Raises:
            UserError: no server is named, or the API key is wrong.
        """
        assert isinstance(judge.spec, RerankerJudgeSpec)
        return cls(Pool.open(judge.servers, judge.spec.model), judge.spec)

    @classmethod
    def fingerprint_of(cls, judge: ConfiguredJudge) -> str:
        assert isinstance(judge.spec, RerankerJudgeSpec)
        return fingerprint(judge.spec)

    @property
    def stats(self) -> dict[str, Any]:
        return {"scoring_api": str(self._api) if self._api else None, "truncated": self.truncated}

    async def ready(self) -> None:
        """Wait for a server and detect its API. If this is not called, the first ``grade`` does it."""
        async with self._detecting:
            if self._api is None:
                documents = [self._document(passage) for passage in _SAMPLE_PASSAGES]
                self._api = await detect_api(self._pool, self._query(_SAMPLE_QUERY), documents)

    async def _request_grade(self, pair: Pair) -> Judgment | Missing:
        assert self._api
        query, passage = self.texts(pair)
        attempts, length = 0, len(passage)
        while True:
            body = self._api.body(self._query(query), [self._document(passage[:length])])
            try:
                scores = await self._pool.request(pair.query_id, self._api.path, body, partial(parse_scores, 1))
                break
            except RetriesExhausted as error:
                attempts = error.attempts = error.attempts + attempts
                if error.kind != "window" or length <= _MIN_CHARACTERS:
                    raise
                length = int(length * _SHORTER)
        if length < len(passage):
            self.truncated += 1
            metrics.TRUNCATED.inc()
        metrics.LATENCY.observe(scores.latency)
        metrics.PROMPT_TOKENS.inc(scores.prompt_tokens)
        (score,) = scores.values
        return Judgment(
            pair,
            int(expected_of_score(score) + 0.5),
            None,
            self.context(pair),
            scores.prompt_tokens,
            0,
            scores.latency,
            attempts + scores.attempts,
            score,
        )

    def _query(self, text: str) -> str:
        return self._spec.query_template.replace("{query}", text)

    def _document(self, text: str) -> str:
        return self._spec.document_template.replace("{document}", text)


def fingerprint(spec: RerankerJudgeSpec) -> str:
    """Hex digest of the model's name and the templates, under which judgments are cached."""
    templates = [spec.query_template, spec.document_template]
    content = {"version": _VERSION, "kind": spec.kind, "model": spec.model, "templates": templates}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
