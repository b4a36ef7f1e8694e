"""For a release: the address of the repository in pyproject.toml, and README's links as absolute ones.

    python tools/address.py https://github.com/ACCOUNT/NAME    in the workflow that builds it; the changes are not committed

PyPI cannot follow relative links, and the files of a repository do not know its address. Uses the standard library only.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r'(\]\(|src="|srcset=")(?!https?:|#)([^)"\s]+)')
PICTURES = (".gif", ".png", ".svg")
URLS = "[project.urls]\n"


def main(arguments: list[str]) -> None:
    found = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?", arguments[0] if len(arguments) == 1 else "")
    if not found:
        sys.exit(f"not the address of a repository on GitHub, https://github.com/ACCOUNT/NAME: {' '.join(arguments)}")
    address, raw = f"https://github.com/{found[1]}", f"https://raw.githubusercontent.com/{found[1]}/main/"
    urls = {"Repository": address, "Issues": f"{address}/issues", "Changelog": f"{address}/blob/main/CHANGELOG.md"}
    lines = "".join(f'{name} = "{url}"\n' for name, url in urls.items())
    rewrite("pyproject.toml", lambda text: text.replace(URLS, URLS + lines))

    def absolute(link: re.Match[str]) -> str:  # pictures as raw files, other files as GitHub's pages
        return link[1] + (raw if link[2].endswith(PICTURES) else f"{address}/blob/main/") + link[2]

    rewrite("README.md", lambda text: LINK.sub(absolute, text))


def rewrite(name: str, change: Callable[[str], str]) -> None:
    path = ROOT / name
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
