"""Runs the ``pyrite`` command for ``python -m pyrite``."""

from pyrite.cli import main

if __name__ == "__main__":
    main()
