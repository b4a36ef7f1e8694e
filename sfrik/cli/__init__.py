"""The command line, `python -m sfrik`."""

from sfrik.cli.main import main

__all__ = ["main"]
