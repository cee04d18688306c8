"""The `helm test` script for the store and the judge, run outside a cluster."""

import json
import runpy
import time
from pathlib import Path

import pytest

from charts.tools import CHART
from pyrite.store.folder import FolderStore
from stub_judge import Stub


def run_script(monkeypatch: pytest.MonkeyPatch, folder: Path, *urls: str) -> object:
    """Run the script with a folder as store; returns its exit code or message."""
    monkeypatch.setattr("pyrite.store.s3.S3Store", lambda _url, _patience: FolderStore(folder))
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    monkeypatch.setenv("PYRITE_STORE", "s3://bucket/prefix")
    monkeypatch.setenv("JUDGE_URLS", json.dumps(urls))
    monkeypatch.setenv("JUDGE_IS_SCALED", "false")
    with pytest.raises(SystemExit) as exit_info:
        runpy.run_path(str(CHART / "files/test_store.py"))
    return exit_info.value.code


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_all_address_forms_of_a_run_are_accepted(suffix: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with Stub() as stub:
        assert run_script(monkeypatch, tmp_path, f"{stub.url}{suffix}") == 0
        assert stub.paths == {"/v1/models": 1}


def test_an_invalid_address_is_reported_without_its_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    message = run_script(monkeypatch, tmp_path, "http://me:secret@judge:8000")
    assert str(message).startswith("FAILED: judge.urls: the URL contains a user name or a password")
    assert "secret" not in str(message)
