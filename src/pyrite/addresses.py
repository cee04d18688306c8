"""Validation of the server URLs that a user writes."""

import re
from collections.abc import Iterable
from urllib.parse import urlsplit

#: What Pyrite adds to a URL itself; some documentation shows URLs with it, and some users then add it twice.
_ENDPOINT = re.compile(r"(?<![:/])(?:/+v1)*(?:/+chat/completions)?/*$")


def normalize_server_urls(urls: Iterable[str], set_key: str) -> list[str]:
    """Normalize ``urls`` (no trailing slash, /v1 or path of a chat request) and drop duplicates.

    ``set_key``: how to set the servers' API key, for messages.

    Raises:
        ValueError: a URL is invalid, or may hold a secret, which the message leaves out.
    """
    return list(dict.fromkeys(_normalize(url, set_key) for url in urls))


def _normalize(url: str, set_key: str) -> str:
    if "@" in url:
        raise ValueError(f"the URL contains a user name or a password: write http://host:port. {set_key}")
    host = (re.match(r"(?:\w+://)?[^/?#]*", url) or [""])[0]
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise ValueError(f"{host!r} is not a server URL: write http://host:port")
    if "?" in url or "#" in url:
        raise ValueError(f"the URL of {host} contains ? or #: write http://host:port. {set_key}")
    return _ENDPOINT.sub("", url)
