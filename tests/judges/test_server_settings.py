"""Errors about the servers of a judge name that judge's settings, and each server gets only its own API key."""

import asyncio
import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from judges.stub_reranker import MODEL as RERANKER
from judges.stub_reranker import StubReranker
from pyrite import tables
from pyrite.errors import PyriteError
from pyrite.executors.local import check_llm_settings
from pyrite.judges import open_judge
from pyrite.spec import ConfiguredJudge, RunSpec
from stub_judge import MODEL, Stub

NOWHERE = "http://127.0.0.1:9"
OTHERS = {"judge.second": "", "judge.first": "first_", "evaluate.judge": "evaluate_"}
POOLS = {"judge": "", **OTHERS}


def spec_of(section: str, url: str, **llm: str) -> RunSpec:
    """A run whose judge in ``section`` is at ``url``, and whose other judges are nowhere."""
    judges = {name: {"kind": "llm", "model": MODEL} for name in ("judge", "judge.first", "judge.second")}
    judges["evaluate.judge"] = {"model": MODEL}
    judges[section] |= llm
    cascade = {"kind": "cascade", "first": judges["judge.first"], "second": judges["judge.second"]}
    return RunSpec.model_validate(
        {
            "name": "r",
            "source": {"kind": "sample"},
            "judge": judges["judge"] if section == "judge" else cascade,
            "evaluate": {"judge": judges["evaluate.judge"]},
            "resources": {
                "judge_timeout": 2,
                **{f"{prefix}judge_urls": [NOWHERE] for prefix in OTHERS.values()},
                f"{POOLS[section]}judge_urls": [url],
            },
        }
    )


def judge_of(section: str, spec: RunSpec) -> ConfiguredJudge:
    found = [each for each in (spec.main_judge, spec.first_judge, spec.evaluation_judge) if each]
    (judge,) = (each for each in found if each.section == section)
    return judge._replace(servers=replace(judge.servers, outage_seconds=0.2))


def connect(judge: ConfiguredJudge) -> None:
    opened = open_judge(judge, *(each.empty_table() for each in (tables.QUERIES, tables.PASSAGES, tables.QRELS)))

    async def run() -> None:
        async with opened:
            await opened.ready()

    asyncio.run(run())


def error_of(judge: ConfiguredJudge) -> tuple[str, set[str]]:
    """The message, and the settings that it names."""
    with pytest.raises(PyriteError) as raised:
        connect(judge)
    text = str(raised.value)
    return text, set(re.findall(r"resources\.\w+|PYRITE_\w+|(?<![\w.])(?:evaluate\.)?judge\.[\w.]*\w", text))


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for prefix in OTHERS.values():
        monkeypatch.setenv(f"PYRITE_{prefix.upper()}JUDGE_API_KEY", f"key-{prefix}")


@pytest.mark.parametrize("section", POOLS)
def test_errors_name_the_settings_of_the_judge(section: str) -> None:
    prefix = POOLS[section]
    urls, model = f"resources.{prefix}judge_urls", f"{section}.model"
    key = {f"PYRITE_{prefix.upper()}JUDGE_API_KEY", f"resources.{prefix}judge_key_file"}
    with Stub() as stub:
        judge = judge_of(section, spec_of(section, stub.url))
        stub.key = f"key-{prefix}"
        connect(judge)  # the key is right

        stub.key = "another"
        text, named = error_of(judge)
        assert "does not accept the API key" in text
        assert named == key

        stub.key, stub.models = None, ["llama"]
        text, named = error_of(judge)
        assert "does not serve 'stub' but llama" in text
        assert named == {model}

        stub.path_statuses = {"/v1/models": 404, "/v1/chat/completions": 404}
        assert error_of(judge)[1] == {urls, model}

        stub.down()
        text, named = error_of(judge)
        assert "responds" in text
        assert named == {urls}


@pytest.mark.parametrize("section", ["judge", "judge.first"])
def test_errors_of_a_reranker_name_its_settings(section: str) -> None:
    prefix = POOLS[section]
    with StubReranker() as stub:
        judge = judge_of(section, spec_of(section, stub.url, kind="reranker", model=RERANKER))
        stub.key = f"key-{prefix}"
        connect(judge)
        stub.key = "another"
        assert error_of(judge)[1] == {f"PYRITE_{prefix.upper()}JUDGE_API_KEY", f"resources.{prefix}judge_key_file"}
        stub.key = None
        other = judge_of(section, spec_of(section, stub.url, kind="reranker", model="other"))
        assert error_of(other)[1] == {f"resources.{prefix}judge_urls", f"{section}.model"}


def no_urls(spec: RunSpec, prefix: str) -> RunSpec:
    return spec.model_copy(update={"resources": spec.resources.model_copy(update={f"{prefix}judge_urls": []})})


def no_key_file(spec: RunSpec, prefix: str) -> RunSpec:
    return spec.model_copy(update={"resources": spec.resources.model_copy(update={f"{prefix}judge_key_file": "no"})})


@pytest.mark.parametrize("section", POOLS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_urls, r"resources\.{}judge_urls is empty.* such as resources\.{}judge_urls="),
        (no_key_file, r"resources\.{}judge_key_file no cannot be read"),
    ],
)
def test_train_checks_the_settings_of_all_judges_first(
    section: str, change: Callable[[RunSpec, str], RunSpec], message: str
) -> None:
    prefix = POOLS[section]
    spec = spec_of(section, NOWHERE)
    check_llm_settings(spec, {"judge", "assess"})
    with pytest.raises(PyriteError, match=message.format(prefix, prefix)):
        check_llm_settings(change(spec, prefix), {"judge", "assess"})


@pytest.mark.parametrize("section", POOLS)
def test_a_missing_prompt_is_named_by_its_setting(section: str) -> None:
    with pytest.raises(PyriteError, match=rf"^{section}\.prompt: none is neither"):
        connect(judge_of(section, spec_of(section, NOWHERE, prompt="none")))
