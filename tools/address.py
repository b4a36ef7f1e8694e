"""Write the address of the repository wherever it is needed, and README's links as absolute ones for PyPI.

    python tools/address.py https://github.com/ACCOUNT/sfrik    once, after the repository has moved; then commit
    python tools/address.py --readme                            only in a release build: PyPI cannot follow relative links

The address is that of `Repository` in pyproject.toml. OWNER is a placeholder, with which no release is built.
Uses the standard library only.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = ("pyproject.toml", "CITATION.cff", "docs/install.md")
PLACEHOLDER = "https://github.com/OWNER/sfrik"
LINK = re.compile(r"(!?\[[^\]]*\]\()(?!https?:|#)([^)\s]+)(\))")


def current() -> str:
    """The address in pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]


def slug(address: str) -> str:
    """ACCOUNT/NAME of an address on GitHub."""
    if not (found := re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?", address)):
        sys.exit(f"not the address of a repository on GitHub, https://github.com/ACCOUNT/NAME: {address}")
    return found[1]


def absolute_links(text: str, address: str) -> str:
    """A page whose relative links are absolute: pictures as raw files, other files as GitHub's pages."""
    raw = f"https://raw.githubusercontent.com/{slug(address)}/main/"
    return LINK.sub(lambda link: link[1] + (raw if link[1][0] == "!" else f"{address}/blob/main/") + link[2] + link[3], text)


def rewrite(name: str, text: str) -> None:
    (ROOT / name).write_text(text, encoding="utf-8", newline="\n")


def main(arguments: list[str]) -> None:
    old = current()
    if arguments == ["--readme"]:
        if old == PLACEHOLDER:
            sys.exit(f"the address is still {PLACEHOLDER}: python tools/address.py https://github.com/ACCOUNT/sfrik")
        rewrite("README.md", absolute_links((ROOT / "README.md").read_text(encoding="utf-8"), old))
        return
    if len(arguments) != 1:
        sys.exit(__doc__)
    new = f"https://github.com/{slug(arguments[0])}"
    for name in FILES:
        rewrite(name, re.sub(rf"\b{slug(old)}\b", slug(new), (ROOT / name).read_text(encoding="utf-8")))


if __name__ == "__main__":
    main(sys.argv[1:])
