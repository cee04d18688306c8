"""Imports the libraries that only some sources need."""

import importlib
from typing import Any

from pyrite.errors import UserError


def import_library(module: str, package: str, purpose: str) -> Any:
    """The module called ``module``, of the Python package ``package``. ``purpose``: what needs it, to begin a message.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{purpose} needs the Python package {package}, which cannot be imported ({error}). Install it: "
            f"pip install {package}"
        ) from error
