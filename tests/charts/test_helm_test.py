"""The script by which `helm test` looks at the store and the judge, run here as in the worker's image."""

import json
import runpy
import time
from pathlib import Path

import pytest

from charts.tools import CHART
from pyrite.store.folder import FolderStore
from stub_judge import Stub


def looked(monkeypatch: pytest.MonkeyPatch, folder: Path, *urls: str) -> object:
    """What it ends with; a folder stands in for S3."""
    monkeypatch.setattr("pyrite.store.s3.S3Store", lambda _url, _patience: FolderStore(folder))
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    monkeypatch.setenv("PYRITE_STORE", "s3://bucket/prefix")
    monkeypatch.setenv("JUDGE_URLS", json.dumps(urls))
    monkeypatch.setenv("JUDGE_IS_SCALED", "false")
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(CHART / "files/test_store.py"))
    return ended.value.code


@pytest.mark.parametrize("more", ["", "/", "/v1", "/v1/"])
def test_a_judge_is_asked_at_any_address_that_a_run_takes(
    more: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with Stub() as stub:
        assert looked(monkeypatch, tmp_path, f"{stub.url}{more}") == 0
        assert stub.paths == {"/v1/models": 1}


def test_an_address_that_no_run_takes_is_told_without_its_secret(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said = looked(monkeypatch, tmp_path, "http://me:secret@judge:8000")
    assert str(said).startswith("FAILED: judge.urls: the URL contains a user name or a password")
    assert "secret" not in str(said)
