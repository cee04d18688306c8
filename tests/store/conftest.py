"""Store tests run on a folder and, with `make test-real`, on a real S3 server."""

import uuid
from pathlib import Path

import pytest

from pyrite.store import Store, open_store
from real.seaweed import environment


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.real)])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty store."""
    if request.param == "folder":
        return str(tmp_path / "store")
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYRITE_CACHE", str(tmp_path / "cache"))
    return f"s3://pyrite/{uuid.uuid4().hex}"


@pytest.fixture
def store(url: str) -> Store:
    store = open_store(url)
    store.ensure_writable()
    return store
