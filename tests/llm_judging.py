"""Opens the LLM judge for a few texts and a stub server."""

import asyncio
from collections.abc import Sequence

import pyarrow as pa

from pyrite import tables
from pyrite.judges import Judgment, Missing, Pair, open_judge
from pyrite.judges.llm import LlmJudge
from pyrite.spec import LlmJudgeSpec, ResourcesSpec, RunSpec, SampleSource
from stub_judge import MODEL, Stub

TEXTS = {f"c{i}": f"passage {i}" for i in range(50)}
PAIRS = [Pair("q", passage) for passage in TEXTS]


def judge_of(
    texts: dict[str, str], *stubs: Stub, queries: Sequence[str] = ("q",), context: str = "", **judge: str
) -> LlmJudge:
    """A judge with the passages ``texts`` by id in one ``context``, and queries whose ids are their texts."""
    spec = RunSpec(
        name="r",
        source=SampleSource(),
        judge=LlmJudgeSpec(model=MODEL, **judge),  # type: ignore[arg-type]
        resources=ResourcesSpec(judge_urls=[stub.url for stub in stubs], judge_timeout=2.0),
    )
    rows = [{"query_id": q, "text": q, "topic": "", "type": "", "split": "train", "question_ids": []} for q in queries]
    defaults = {"title": "", "context": context, "split": "train", "parents": []}
    passages = [{"passage_id": c, "text": t, **defaults} for c, t in texts.items()]
    tables_of = (pa.Table.from_pylist(rows, tables.QUERIES), pa.Table.from_pylist(passages, tables.PASSAGES))
    judge = open_judge(spec.main_judge, *tables_of, tables.QRELS.empty_table())
    assert isinstance(judge, LlmJudge)
    return judge


def grade_pairs(judge: LlmJudge, *pairs: Pair) -> list[Judgment | Missing]:
    async def run() -> list[Judgment | Missing]:
        async with judge:
            return await asyncio.gather(*(judge.grade(pair) for pair in pairs))

    return asyncio.run(run())
