"""Imports the libraries that only some sources need."""

import importlib
from typing import Any

from pyrite.errors import UserError


def import_library(module: str, extra: str, purpose: str) -> Any:
    """The module called ``module``, from pyproject's ``extra``. ``purpose``: what needs it, to begin a message.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{purpose} needs the Python package {module}, which cannot be imported ({error}). Install it: "
            f"pip install 'pyrite[{extra}]'"
        ) from error
