"""Addresses of the judge's servers, as a person writes them into a run file."""

from pathlib import Path

import pytest

from pyrite.config import load
from pyrite.errors import UserError

SECRET = "sk-very-secret-0123456789"


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("source: {kind: sample}\n")
    return path


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("localhost:8000", "'localhost:8000' is not an address: write http://host:port"),
        ("ftp://x", "'ftp://x' is not an address"),
        ("http://", "'http://' is not an address"),
        ("http://x:99999", "'http://x:99999' is not an address"),
        (f"http://x:99999/{SECRET}", "'http://x:99999' is not an address"),
        (
            f"http://me:{SECRET}@host:8000",
            "user name or a password: write http://host:port. Give a key by PYRITE_JUDGE",
        ),
        (f"http://me:{SECRET}@host:99999", "user name or a password"),
        (f"http://x/v1?api_key={SECRET}", "the address of http://x has more after ? or #"),
        (f"http://x#{SECRET}", "the address of http://x has more after ? or #"),
    ],
)
@pytest.mark.parametrize("form", ["[http://well:1, '{}']", "'{}'"])
def test_what_is_no_address_is_named_without_what_may_be_secret(run_file: Path, url: str, told: str, form: str) -> None:
    with pytest.raises(UserError, match=r"resources.judge_urls: ") as stopped:
        load(run_file, [f"resources.judge_urls={form.format(url)}"])
    assert SECRET not in str(stopped.value)
    assert told in str(stopped.value) or not form.startswith("[")


def test_the_same_server_written_otherwise_is_one_server(run_file: Path) -> None:
    urls = "[http://h:1/v1, 'http://h:1', 'http://h:1/v1/', 'https://h/openai/v1']"
    spec = load(run_file, [f"resources.judge_urls={urls}"])
    assert spec.resources.judge_urls == ["http://h:1", "https://h/openai"]
