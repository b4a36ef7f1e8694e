"""Write the address of the repository, which none of its files knows, where it belongs.

    python tools/address.py https://github.com/ACCOUNT/NAME            after the first push: look at the changes and commit them
    python tools/address.py https://github.com/ACCOUNT/NAME --release  in the workflow that builds a release; nothing is committed

pyproject.toml and CITATION.cff get the address, README the badge of the tests and links that open notebooks 01 and 02 on Binder
and Colab. For a release README's links become absolute: PyPI cannot follow relative ones. Uses the standard library only.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r'(\]\(|src="|srcset=")(?!https?:|#)([^)"\s]+)')
PICTURES = (".gif", ".png", ".svg")
NOTEBOOKS = ("01_kernel_theory", "02_pretraining")


def main(arguments: list[str]) -> None:
    addresses = [argument for argument in arguments if argument != "--release"]
    found = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?", addresses[0] if len(addresses) == 1 else "")
    if not found:
        sys.exit(f"not the address of a repository on GitHub, https://github.com/ACCOUNT/NAME: {' '.join(addresses)}")
    address = f"https://github.com/{found[1]}"
    urls = {"Repository": address, "Issues": f"{address}/issues", "Changelog": f"{address}/blob/main/CHANGELOG.md"}
    insert("pyproject.toml", "[project.urls]\n", "".join(f'{name} = "{url}"\n' for name, url in urls.items()))
    insert("CITATION.cff", "type: software\n", f'repository-code: "{address}"\n')
    tests = f"{address}/actions/workflows/ci.yml"
    insert("README.md", "# SFRIK\n\n", f"[![tests]({tests}/badge.svg)]({tests})\n")
    insert("README.md", "opens the sources.\n", f"{in_a_browser(found[1])}\n")
    if "--release" in arguments:
        raw = f"https://raw.githubusercontent.com/{found[1]}/main/"

        def absolute(link: re.Match[str]) -> str:  # pictures as raw files, other files as GitHub's pages
            return link[1] + (raw if link[2].endswith(PICTURES) else f"{address}/blob/main/") + link[2]

        rewrite("README.md", lambda text: LINK.sub(absolute, text))


def in_a_browser(name: str) -> str:
    """A sentence with links that open notebooks on Binder and Colab."""
    services = {
        "Binder": f"https://mybinder.org/v2/gh/{name}/main?labpath=notebooks%2F",
        "Colab": f"https://colab.research.google.com/github/{name}/blob/main/notebooks/",
    }
    links = [f"{service} [{of[:2]}]({start}{of}.ipynb)" for service, start in services.items() for of in NOTEBOOKS]
    return f"In a browser: {', '.join(links)} ([what Colab needs first](docs/install.md#containers-binder-and-colab))."


def insert(name: str, after: str, lines: str) -> None:
    """Insert lines after a part of a file, unless the file has them."""
    rewrite(name, lambda text: text if lines in text else text.replace(after, after + lines, 1))


def rewrite(name: str, change: Callable[[str], str]) -> None:
    path = ROOT / name
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
