"""Names of domains, channels and versions."""

import re
from typing import NamedTuple

from pyrite.errors import UserError

#: The channel of the newest version.
LATEST = "latest"

#: The channel that commands use by default.
PRODUCTION = "production"

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_VERSION = re.compile(r"v([1-9]\d*)")
_RULE = "use 1 to 63 lower-case letters, digits and dashes, starting and ending with a letter or digit"


class Target(NamedTuple):
    """A domain, and the channel or version in it."""

    domain: str
    reference: str


def check_domain(name: str) -> str:
    """Return ``name``. Raises UserError if it is not a valid name of a domain."""
    if not _NAME.fullmatch(name):
        raise UserError(f"{name!r} is not a valid domain: {_RULE}.")
    return name


def check_channel(name: str) -> str:
    """Return ``name``. Raises UserError if it is not a valid name of a channel."""
    if not _NAME.fullmatch(name) or is_version(name):
        raise UserError(f"{name!r} is not a valid channel: {_RULE}; v1, v2, ... are versions.")
    return name


def is_version(name: str) -> bool:
    """Whether ``name`` is the name of a version: v1, v2, ..."""
    return _VERSION.fullmatch(name) is not None


def version_name(number: int) -> str:
    """The name of a version: 3 is v3."""
    return f"v{number}"


def version_number(name: str) -> int:
    """The number of a version: v3 is 3. Raises UserError if ``name`` is not the name of a version."""
    match = _VERSION.fullmatch(name)
    if match is None:
        raise UserError(f"{name!r} is not a version. Versions are v1, v2, ...; `pyrite models DOMAIN` lists them.")
    return int(match[1])


def parse_target(text: str) -> Target:
    """Read DOMAIN, DOMAIN@CHANNEL or DOMAIN@VERSION; the default is the channel production.

    Raises:
        UserError: the domain, the channel or the version is not a valid name.
    """
    domain, separator, reference = text.partition("@")
    if not separator:
        return Target(check_domain(domain), PRODUCTION)
    return Target(check_domain(domain), reference if is_version(reference) else check_channel(reference))
