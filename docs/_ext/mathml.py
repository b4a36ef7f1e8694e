"""Equations as MathML, made while the site is built (latex2mathml): browsers draw it by themselves.

They need a font with OpenType's table for mathematics, which many machines lack: the site carries STIX Two Math (SIL Open Font
License 1.1), as the package ziamath has it. What latex2mathml gets wrong of spacing and bars is mended here.
"""

from __future__ import annotations

import shutil
from importlib.resources import as_file, files
from pathlib import Path
from xml.etree import ElementTree

from docutils import nodes
from latex2mathml.converter import convert

__all__ = ["mathml", "setup"]

FONT = "STIXTwoMath-Regular.ttf"
SPACE = "http://www.w3.org/1998/Math/MathML"
BARS = {"\\|": "‖", "\\Vert": "‖", "|": "|", "‖": "‖", "/": "/", ".": "."}  # TeX sets them without space
SPACED = {";": ("0", "0.17em"), "~": ("0.28em", "0.28em")}  # latex2mathml has them as identifiers
OPENING = set("(=<>≤≥,;[")  # a minus after one of them, or at the start, is a sign

ElementTree.register_namespace("", SPACE)


def mathml(latex: str, display: str) -> str:
    """The equation as a MathML element; `display` is "inline" or "block"."""
    root = ElementTree.fromstring(convert(latex, display=display))
    for parent in list(root.iter()):
        before = None
        for child in parent:
            _mend(child, before)
            before = child
    for parent in list(root.iter()):
        _bracket(parent)
    for leaf in root.iter():
        if (leaf.text or "").startswith("\\"):
            raise ValueError(f"latex2mathml does not know {leaf.text} in {latex!r}")
    return ElementTree.tostring(root, encoding="unicode")


def _is(node: ElementTree.Element, *names: str) -> bool:
    return node.tag in [f"{{{SPACE}}}{name}" for name in names]


def _mend(node: ElementTree.Element, before: ElementTree.Element | None) -> None:
    text = node.text or ""
    if _is(node, "mo") and text in BARS:
        node.text = BARS[text]
        node.attrib.update(lspace="0", rspace="0")
    elif _is(node, "mi") and text in SPACED:
        node.tag, node.text = f"{{{SPACE}}}mo", text.replace("~", "∼")
        node.set("lspace", SPACED[text][0])
        node.set("rspace", SPACED[text][1])
    elif text == "∞":
        node.tag = f"{{{SPACE}}}mi"
    elif text == "−" and (before is None or (before.text or "") in OPENING):
        node.set("form", "prefix")
    elif _is(node, "msub", "msubsup") and node[0].text == "∑":  # in a line of text the browser moves them aside by itself
        node.tag = f"{{{SPACE}}}munder" if _is(node, "msub") else f"{{{SPACE}}}munderover"


def _bracket(parent: ElementTree.Element) -> None:
    r"""A power of a big bracket, as in \Big( x \Big)^2, is one of the whole: only then does the closing bracket grow."""
    children = list(parent)
    for k, child in enumerate(children):
        if not (_is(child, "msub", "msup", "msubsup") and child[0].get("minsize")):
            continue
        start = max((i for i in range(k) if children[i].get("minsize")), default=None)
        if start is None:
            continue
        whole = ElementTree.Element(f"{{{SPACE}}}mrow")
        whole.extend([*children[start:k], child[0]])
        for fence, form in ((whole[0], "prefix"), (whole[-1], "postfix")):
            fence.attrib.clear()
            fence.attrib.update(stretchy="true", fence="true", form=form, lspace="0", rspace="0")
        for inside in children[start:k]:
            parent.remove(inside)
        child[0] = whole


def _inline(translator, node: nodes.math) -> None:
    translator.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def _block(translator, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{mathml(node.astext(), "block")}</div>\n')
    raise nodes.SkipNode


def _font(app, exception) -> None:
    if exception is None and app.builder.format == "html":
        with as_file(files("ziamath.fonts") / FONT) as font:
            shutil.copyfile(font, Path(app.outdir, "_static", FONT))


def setup(app):
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.connect("build-finished", _font)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
