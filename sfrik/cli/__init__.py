"""The command line, `python -m sfrik`."""

from sfrik.cli import main

__all__ = ["main"]
