"""Docstrings as this package writes them, for autodoc: plain text with code in single backticks and indented formulas.

reStructuredText would read a formula that is indented as a quotation, and `|z|` or `a * b` in a sentence as its own marks. So
such blocks become literal ones, those characters are escaped outside of code, and a dotted name of the package becomes a link.
Of a class of settings the fields are listed with their defaults and descriptions, in the place of its signature.
"""

from __future__ import annotations

import ast
import re
import textwrap

__all__ = ["setup"]

CODE = re.compile(r"(``.+?``|`[^`]+`|(?<![\w*])\*[^\s*][^*]*\*(?!\w))")  # and *emphasis*
NAME = re.compile(r"`(sfrik(?:\.\w+)+)`")
SECTION = re.compile(r"(Args|Returns|Raises|Attributes|Examples?|Yields|Note)s?:$")


def _escaped(line: str) -> str:
    parts = CODE.split(line)
    parts[::2] = [re.sub(r"([*|])|(?<=\w)(_)(?!\w)", r"\\\g<0>", part) for part in parts[::2]]
    return NAME.sub(r":py:obj:`\1`", "".join(parts))


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _block(lines: list[str], start: int, base: int) -> list[str]:
    """The indented lines from `start` on."""
    end = start
    while end < len(lines) and (not lines[end].strip() or _indent(lines[end]) > base):
        end += 1
    return lines[start:end]


def _language(block: list[str]) -> str:
    try:
        ast.parse(textwrap.dedent("\n".join(block)))
    except SyntaxError:
        return "text"
    return "python"


def rewrite(lines: list[str]) -> list[str]:
    """The docstring's lines as reStructuredText for napoleon."""
    result: list[str] = []
    base = k = 0  # base: the indentation of the text that a formula is set off from
    while k < len(lines):
        line = lines[k]
        after_blank = k > 0 and not lines[k - 1].strip()
        if line.lstrip().startswith(">>>"):
            while k < len(lines) and lines[k].strip():
                result.append(lines[k])
                k += 1
            continue
        if line.strip() and after_blank and _indent(line) > base and not SECTION.search(line):
            block = _block(lines, k, base)
            result += [" " * base + f".. code-block:: {_language(block)}", "", *block, ""]
            k += len(block)
            continue
        base = _indent(line) if line.strip() else base
        result.append(_escaped(line))
        k += 1
    return result


def _process(app, what, name, obj, options, lines) -> None:
    lines[:] = rewrite(list(lines))
    if what == "property" and lines:  # napoleon takes what stands before a colon for a type
        lines[0] = lines[0].replace(": ", " – ")
    if what == "class" and hasattr(obj, "model_fields"):
        own = [(field, obj.model_fields[field]) for field in vars(obj).get("__annotations__", {}) if field in obj.model_fields]
        lines += [
            "",
            *(f"- ``{field}`` = ``{about.default!r}``: {_escaped(about.description or '')}" for field, about in own),
            "",
        ]


def _signature(app, what, name, obj, options, signature, result):
    return ("", None) if what == "class" and hasattr(obj, "model_fields") else None


def _skip(app, what, name, obj, skip, options) -> bool | None:
    return True if name == "model_config" else None


def setup(app):
    app.connect("autodoc-process-docstring", _process, priority=100)  # before napoleon
    app.connect("autodoc-process-signature", _signature)
    app.connect("autodoc-skip-member", _skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
