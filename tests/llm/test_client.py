"""The HTTP client's parsing of headers. Its errors are tested through the pool."""

from datetime import UTC, datetime

import pytest

from pyrite.llm.client import parse_retry_after


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("Wed, 21 Oct 2026 07:28:09 GMT", 9.0),
        ("Wed, 21 Oct 2020 07:28:09 GMT", 0.0),
        ("soon", None),
        ("", None),
    ],
)
def test_retry_after_is_parsed_as_seconds_or_date(text: str, seconds: float | None) -> None:
    now = datetime(2026, 10, 21, 7, 28, 0, tzinfo=UTC)
    assert parse_retry_after({"Retry-After": text}, now) == seconds
