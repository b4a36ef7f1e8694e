"""A home folder and a user name for processes that have none, as in a container with `--user 12345`.

Python and libraries (matplotlib, Jupyter, PyTorch's compiler) fail without them, some of them while they are imported. So this is
done when `sfrik` is imported, before any of them.
"""

from __future__ import annotations

import getpass
import os
from contextlib import suppress

from sfrik.errors import SfrikError
from sfrik.system.temporary import user_folder

__all__ = ["provide_home"]


def provide_home() -> None:
    """Set HOME to `user_folder()` if there is no home folder, and USER if there is no user name; child processes inherit both.

    A home that exists stays as it is, even if it is not writable.
    """
    home = os.path.expanduser("~")
    if not (os.path.isabs(home) and os.path.isdir(home)) or os.environ.get("HOME") == "":
        with suppress(SfrikError):  # reported by what needs the folder
            os.environ["HOME"] = str(user_folder())
    try:
        getpass.getuser()
    except (OSError, KeyError, ImportError):  # OSError since Python 3.13
        os.environ["USER"] = f"uid{os.getuid()}" if hasattr(os, "getuid") else "user"


provide_home()
