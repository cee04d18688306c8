"""Addresses of servers, as a person writes them and as requests are built on them. Pure."""

import re
from collections.abc import Iterable
from urllib.parse import urlsplit

_KEY = "Give a key by PYRITE_JUDGE_API_KEY or resources.judge_key_file"


def servers(urls: Iterable[str]) -> list[str]:
    """Each of ``urls`` once, without a closing slash or /v1.

    Raises:
        ValueError: one is not an address, or holds what may be a secret, which is not repeated.
    """
    return list(dict.fromkeys(map(_address, urls)))


def _address(url: str) -> str:
    if "@" in url:
        raise ValueError(f"an address holds a user name or a password: write http://host:port. {_KEY}")
    shown = (re.match(r"(?:\w+://)?[^/?#]*", url) or [""])[0]
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound:
        raise ValueError(f"{shown!r} is not an address: write http://host:port")
    if "?" in url or "#" in url:
        raise ValueError(f"the address of {shown} has more after ? or #: write http://host:port. {_KEY}")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")
