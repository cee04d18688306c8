"""Fixtures of the tests against real servers."""

import json
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from real.proxy import Proxy
from real.seaweed import environment


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The URL of an empty store on a real S3 server, which the environment now points to."""
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYRITE_CACHE", str(tmp_path / "cache"))
    return f"s3://pyrite/{uuid.uuid4().hex}"


@pytest.fixture
def proxy(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy in front of the S3 server, which the environment now points to."""
    assert s3
    proxy = Proxy(int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2]))
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    yield proxy
    proxy.stop()


@pytest.fixture
def measured() -> Callable[..., None]:
    """Records a row of measurements if scripts/reliability.py or scripts/reliability_cluster.py runs the tests."""

    def add(**row: Any) -> None:
        if path := os.environ.get("PYRITE_RELIABILITY_ROWS"):
            with Path(path).open("a") as file:
                file.write(json.dumps(row) + "\n")

    return add
