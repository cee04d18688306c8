"""A stub of an LLM server that knows a run's answer key: it grades with the simulated errors of `judge.noise`."""

from pyrite import tables
from pyrite.executors.step import Run
from pyrite.judges import Pair
from pyrite.judges.labels import LabelsJudge
from pyrite.judges.noise import LatentErrors
from pyrite.llm.escaping import escape_markup
from pyrite.spec import LabelsJudgeSpec
from stub_judge import Stub, distribution


class KeyServer(Stub):
    """Serves the grades of a run's judge with `judge.noise`, as log probabilities of the grades."""

    def __init__(self, run: Run, *capabilities: str):
        """``run`` has finished the steps prepare and retrieve of iteration 1."""
        super().__init__(*capabilities)
        names = ("queries/queries", "corpus/passages", "queries/qrels", "iterations/1/candidates")
        schemas = (tables.QUERIES, tables.PASSAGES, tables.QRELS, tables.CANDIDATES)
        files = (run.store.fetch(f"{run.prefix}/{name}.parquet") for name in names)
        queries, passages, qrels, candidates = map(tables.read, files, schemas)
        key = LabelsJudge.of(queries, passages, qrels)
        assert isinstance(run.spec.judge, LabelsJudgeSpec)
        assert run.spec.judge.noise
        errors = LatentErrors(run.spec.judge.noise)
        errors.fit(candidates, run.spec.retrieve.range_max, key.true_grade, queries["query_id"].to_pylist())
        query_of = dict(
            zip(map(escape_markup, queries["text"].to_pylist()), queries["query_id"].to_pylist(), strict=True)
        )
        texts = map(escape_markup, tables.in_context(passages))
        passage_of = dict(zip(texts, passages["passage_id"].to_pylist(), strict=True))

        def noisy(texts: tuple[str, str]) -> tuple[float, ...] | list[float]:
            query, passage = texts
            if query not in query_of:  # the sample question with which the judge detects capabilities
                return distribution(texts)
            pair = Pair(query_of[query], passage_of[passage])
            return errors.grade(pair, key.true_grade(pair))[1]

        self.distribution = noisy
