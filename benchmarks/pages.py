"""Parts of a page of docs/ that the scripts of this folder write, between comments such as <!-- size --> and <!-- /size -->."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

__all__ = ["with_parts"]


def with_parts(page: str, parts: Mapping[str, Sequence[str]]) -> str:
    """The page with the lines of each named part in place of those that are there.

    Raises:
        ValueError: the page has no such part, or two of them.
    """
    for name, lines in parts.items():
        part = "\n".join([f"<!-- {name} -->", "", *lines, "", f"<!-- /{name} -->"])
        page, found = re.subn(rf"<!-- {name} -->.*?<!-- /{name} -->", lambda _, part=part: part, page, flags=re.DOTALL)
        if found != 1:
            raise ValueError(f"the page has {found} parts <!-- {name} --> ... <!-- /{name} -->, not one")
    return page
