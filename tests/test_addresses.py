"""URLs of the judge's servers in a run file."""

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
    ("url", "message"),
    [
        ("localhost:8000", "'localhost:8000' is not a server URL: write http://host:port"),
        ("ftp://x", "'ftp://x' is not a server URL"),
        ("http://", "'http://' is not a server URL"),
        ("http://x:99999", "'http://x:99999' is not a server URL"),
        (f"http://x:99999/{SECRET}", "'http://x:99999' is not a server URL"),
        (
            f"http://me:{SECRET}@host:8000",
            "user name or a password: write http://host:port. Set PYRITE_JUDGE_API_KEY, or",
        ),
        (f"http://me:{SECRET}@host:99999", "user name or a password"),
        (f"http://x/v1?api_key={SECRET}", "the URL of http://x contains ? or #"),
        (f"http://x#{SECRET}", "the URL of http://x contains ? or #"),
    ],
)
@pytest.mark.parametrize("yaml_form", ["[http://well:1, '{}']", "'{}'"])
def test_an_invalid_url_is_reported_without_its_secret(run_file: Path, url: str, message: str, yaml_form: str) -> None:
    with pytest.raises(UserError, match=r"resources.judge_urls: ") as raised:
        load(run_file, [f"resources.judge_urls={yaml_form.format(url)}"])
    assert SECRET not in str(raised.value)
    assert message in str(raised.value) or not yaml_form.startswith("[")


def test_spellings_of_one_server_are_merged(run_file: Path) -> None:
    spellings = "http://h:1/v1, 'http://h:1', 'http://h:1/v1/', http://h:1/v1/v1, http://h:1/v1/chat/completions"
    urls = f"[{spellings}, 'https://h/openai/v1', http://v1]"
    spec = load(run_file, [f"resources.judge_urls={urls}"])
    assert spec.resources.judge_urls == ["http://h:1", "https://h/openai", "http://v1"]
