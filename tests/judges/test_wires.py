"""The LLM judge over HTTP gives the judgments and examples of the same judge in this process."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from key_server import KeyServer
from pyrite.config import load
from pyrite.executors.step import Run, open_run, run_step
from pyrite.plan import Step
from pyrite.progress import NullProgress
from pyrite.store import open_store
from stub_judge import MODEL


def rows(run: Run, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(
        run.store.fetch(f"{run.prefix}/iterations/1/{name}.parquet")
    ).to_pylist()
    return found


@pytest.mark.parametrize(
    "capabilities", [("label_ids",), ("choice", "logprobs"), ("logprobs",)], ids=lambda each: each[0]
)
def test_a_noisy_server_equals_noise_in_process(run_file: Path, tmp_path: Path, capabilities: tuple[str, ...]) -> None:
    store = open_store(str(tmp_path / "store"))

    def run_of(name: str, *overrides: str) -> Run:
        """A run whose steps up to mine are finished, except those of the judge."""
        # All ranks, because by default an LLM judges fewer than labels.
        common = (f"name={name}", "judge.shards=1", "judge.rank_window=null", "mine.known_first=false")
        run = open_run(load(run_file, [*common, *overrides]), store)
        for step in (Step("prepare"), Step("embed", 0, 0), Step("retrieve", 1)):
            run_step(run, step, NullProgress())
        return run

    in_process = run_of("in-process", "judge.noise={kappa: 0.5, similarity: 0.5}")
    with KeyServer(in_process, *capabilities, "tokenize") as server:
        over_http = run_of("http", "judge.kind=llm", f"judge.model={MODEL}", f"resources.judge_urls=[{server.url}]")
        for run in (in_process, over_http):
            summary = run_step(run, Step("judge", 1, 0), NullProgress())["summary"]
            run_step(run, Step("mine", 1), NullProgress())
        assert (summary["decoding_mode"], summary["missing"], summary["without_logprobs"]) == (capabilities[0], 0, 0)
    judged = [
        {(row["query_id"], row["passage_id"]): row for row in rows(run, "judgments/shard-00000")}
        for run in (in_process, over_http)
    ]
    assert judged[0].keys() == judged[1].keys()
    assert len(judged[0]) > 400
    assert len({row["grade"] for row in judged[0].values()}) == 4
    for pair, expected in judged[0].items():
        found = judged[1][pair]
        assert found["grade"] == expected["grade"]
        for name in ("p1", "p2", "p3", "p4", "expected"):
            assert found[name] == pytest.approx(expected[name], abs=1e-5)
    examples = rows(in_process, "examples")
    assert rows(over_http, "examples") == examples
    assert len(examples) > 20
