"""A new judge needs only settings and a registered class. The judge stage and the probe then use it."""

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Literal, Self

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pyrite import judges
from pyrite.config import load
from pyrite.executors.step import Run, open_run, run_step
from pyrite.judge_eval.probe import probe
from pyrite.judges import Judge, Judgment, Pair, register
from pyrite.plan import Step
from pyrite.progress import NullProgress
from pyrite.spec import (
    CommonJudgeSpec,
    ConfiguredJudge,
    LabelsJudgeSpec,
    LlmJudgeSpec,
    RerankerJudgeSpec,
    RunSpec,
    SampleSource,
)
from pyrite.store import open_store

# The settings below are not in the union, so pydantic warns when it serialises them.
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")


class LengthJudgeSpec(CommonJudgeSpec):
    reads_text: ClassVar[bool] = True
    kind: Literal["length"] = "length"
    unit: int = 20


@pytest.fixture
def length_judge() -> type[Judge]:
    """A judge that grades by the length of the passage."""

    @register("length")
    class LengthJudge(Judge):
        shareable = True
        in_flight = 4

        def __init__(self, unit: int):
            self.fingerprint, self._unit = f"length-{unit}", unit
            self._texts: dict[str, str] = {}

        @classmethod
        def open(cls, judge: ConfiguredJudge) -> Self:
            assert isinstance(judge.spec, LengthJudgeSpec)
            return cls(judge.spec.unit)

        def load(self, queries: pa.Table, passages: pa.Table) -> None:
            del queries
            self._texts |= zip(passages["passage_id"].to_pylist(), passages["text"].to_pylist(), strict=True)

        @classmethod
        def fingerprint_of(cls, judge: ConfiguredJudge) -> str:
            assert isinstance(judge.spec, LengthJudgeSpec)
            return f"length-{judge.spec.unit}"

        @classmethod
        def external(cls, judge: ConfiguredJudge) -> dict[str, Callable[[], str]]:
            return {"prompt": lambda: cls.fingerprint_of(judge)}

        async def grade(self, pair: Pair) -> Judgment:
            return Judgment(pair, 1 + len(self._texts[pair.passage_id]) // self._unit % 4, None)

    return LengthJudge


@pytest.fixture
def run(length_judge: type[Judge], run_file: Path, tmp_path: Path) -> Run:
    del length_judge
    spec = load(run_file).model_copy(update={"judge": LengthJudgeSpec(shards=1)})
    return open_run(spec, open_store(str(tmp_path / "store")))


def test_a_new_judge_runs_in_the_judge_stage(run: Run, tmp_path: Path) -> None:
    assert run.external["prompt"] == "length-20"
    for step in (Step("prepare"), Step("embed", 0, 0), Step("retrieve", 1)):
        run_step(run, step, NullProgress())
    summary = run_step(run, Step("judge", 1, 0), NullProgress())["summary"]
    assert summary["judge"] == "length-20"
    assert summary["judged"] == summary["pairs"] > 0
    table = pq.read_table(tmp_path / "store/runs/small/iterations/1/judgments/shard-00000.parquet")
    text = {
        row["passage_id"]: row["text"]
        for row in pq.read_table(tmp_path / "store/runs/small/corpus/passages.parquet").to_pylist()
    }
    assert all(row["grade"] == 1 + len(text[row["passage_id"]]) // 20 % 4 for row in table.to_pylist())
    assert list((tmp_path / "store/judgments/length-20").rglob("*.parquet")), "a shareable judge is cached"


def test_a_new_judge_can_be_probed(run: Run) -> None:
    run_step(run, Step("prepare"), NullProgress())
    content = probe(run, 5, 4, NullProgress())
    assert content["judge"] == {
        "kind": "length",
        "model": None,
        "prompt": None,
        "errors": None,
        "reply": "a grade",
        "fingerprint": "length-20",
    }
    assert content["answered"]["judged"] == content["answered"]["requested"] > 0


def test_every_judge_in_the_settings_has_a_registered_class() -> None:
    for section in (LabelsJudgeSpec(), LlmJudgeSpec(model="m"), RerankerJudgeSpec(model="m")):
        spec = RunSpec(name="r", source=SampleSource(), judge=section)
        assert judges.fingerprint(spec.main_judge)
        assert judges.external(spec).keys() == ({"prompt"} if section.kind == "llm" else set())
