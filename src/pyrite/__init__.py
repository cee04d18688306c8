"""Pyrite: adapt a text-embedding model to one domain, and prove that it is better."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("pyrite")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"
