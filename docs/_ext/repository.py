"""Sphinx extension that adds to the site: executed notebooks, tables with figures, run folders, the reference of each package.

- A notebook is shown as its executed copy (results/digits/notebooks) if there is one.
- A table gets a title and its figure. An image with a variant for the dark mode, NAME_dark, follows the theme.
- The folder of each run becomes a page with its records, and the folder of figures a page with the figures.
- A link to another file of the repository is a download; one to a folder or to an executed notebook of a run becomes plain text.
- A page docs/api/<package>.rst contains only a title; the directives that document the package's modules are appended to it.
"""

from __future__ import annotations

import html
import json
import posixpath
import re
import shutil
from importlib import import_module
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.util.osutil import relative_uri

__all__ = ["setup"]

ROOT = Path(__file__).parents[2]
EXECUTED = "results/digits/notebooks"
CHAPTERS = "docs/notebooks"  # lists the notebooks
WIDGET = "application/vnd.jupyter.widget-view+json"
RESULTS_PAGES = """

```{toctree}
:hidden:
:glob:

/results/claims*
/results/*/README
/results/*/tables/*
```
"""
SEARCHED = {  # words under which the search shows a page first
    "docs/your_code": ("use this loss", "use the loss", "my own code"),
    "results/claims": ("reproduced", "replication"),
}
PICTURES = (".png", ".svg", ".gif", ".mp4")


def folders() -> list[str]:
    """The result folders that become pages, as paths in the repository."""
    found = (ROOT / "results").glob("*/*/seed*/provenance.json")
    runs = sorted({path.parent for path in found if path.parent.name[4:].isdecimal()})  # not those of other settings
    figures = sorted(path for path in (ROOT / "results").glob("*/figures") if path.is_dir())
    return [path.relative_to(ROOT).as_posix() for path in [*figures, *runs]]


# --- sources


def _read(app, docname: str, source: list[str]) -> None:
    if docname.startswith("docs/api/") and docname != "docs/api/index":
        source[0] += _reference(posixpath.basename(docname))
        return
    if docname.startswith("notebooks/"):
        executed = ROOT / EXECUTED / f"{posixpath.basename(docname)}.ipynb"
        source[0] = _for_the_site(executed.read_text(encoding="utf-8") if executed.is_file() else source[0])
        return
    if docname in SEARCHED:
        title, _, rest = source[0].partition("\n")
        entries = "".join(f"```{{index}} ! single: {words}\n```\n" for words in SEARCHED[docname])
        source[0] = f"{title}\n\n{entries}{rest}"
    source[0] = BADGE.sub("", source[0])  # the site loads nothing from other sites
    source[0] = _with_dark_variants(source[0], ROOT / posixpath.dirname(docname))
    source[0] = source[0].replace(" ± ", "\u00a0±\u00a0")  # no line break between a mean and its deviation
    if docname == "results/README":
        source[0] += RESULTS_PAGES
    elif re.fullmatch(r"results/[^/]+/[^/]+/README", docname):
        source[0] = f"---\norphan: true\n---\n\n{source[0]}"  # reached from the tables, not from the list of pages
    elif table := re.fullmatch(r"results/([^/]+)/tables/table(\d+)", docname):
        profile, number = table.groups()
        source[0] = f"# Table {number} ({profile})\n\n{source[0]}"
        if (ROOT / "results" / profile / "figures" / f"table{number}.svg").is_file():
            source[0] += f"\n\n![Figure of table {number}](../figures/table{number}.svg)\n"


BADGE = re.compile(r"^\[!\[[^\]]*\]\(https://img\.shields\.io/[^)]*\)\]\([^)]*\)\n", re.MULTILINE)
PICTURE = re.compile(r'<picture>\s*<source [^>]*>\s*<img alt="([^"]*)" src="([^"]*)">\s*</picture>')
IMAGE = re.compile(r"^!\[([^\]]*)\]\(([^)\s]+)(\.\w+)\)$", re.MULTILINE)


def _with_dark_variants(text: str, folder: Path) -> str:
    """The page with two images in place of each that has a variant NAME_dark: the theme shows one of them."""

    def both(found: re.Match) -> str:
        alt, name, suffix = found.groups()
        if not (folder / f"{name}_dark{suffix}").is_file():
            return found[0]
        variants = {"light": f"{name}{suffix}", "dark": f"{name}_dark{suffix}"}
        return "\n".join(f"```{{image}} {path}\n:class: only-{mode}\n:alt: {alt}\n```" for mode, path in variants.items())

    return IMAGE.sub(both, PICTURE.sub(r"![\1](\2)", text))


def _for_the_site(notebook: str) -> str:
    """Collapse the cells that JupyterLab collapses. Remove widgets, which need a kernel; keep the other outputs."""
    content = json.loads(notebook)
    content["metadata"].pop("widgets", None)
    for cell in content["cells"]:
        tags = cell["metadata"].setdefault("tags", [])
        if cell["metadata"].get("jupyter", {}).get("source_hidden") or "parameters" in tags:
            tags.append("hide-input")
        if cell["cell_type"] == "code":
            # an output with only a text besides the widget shows only the widget's name
            cell["outputs"] = [o for o in cell["outputs"] if not {WIDGET} <= set(o.get("data", ())) <= {WIDGET, "text/plain"}]
            for output in cell["outputs"]:
                output.get("data", {}).pop(WIDGET, None)
    return json.dumps(content)


def _reference(room: str) -> str:
    """Directives that document a module, or a package: the names that it exports, then the other names of its modules."""
    package = ROOT / "sfrik" / room
    modules = [path.stem for path in sorted(package.glob("[!_]*.py"))]
    exported = set(getattr(import_module(f"sfrik.{room}"), "__all__", ())) if package.is_dir() else set()
    hidden = {f"sfrik.{room}": exported & set(modules)}  # a name that a package shares with its module is the module's
    hidden |= {f"sfrik.{room}.{module}": exported - set(modules) for module in modules}
    overview = "".join(f"- :mod:`{name}`: {_summary(name)}\n" for name in hidden)
    return f"\n{overview}" * (len(hidden) > 1) + "".join(
        f"\n``{name}``\n{'-' * (len(name) + 4)}\n\n.. automodule:: {name}\n   :members:\n"
        + f"   :exclude-members: {', '.join(sorted(names))}\n" * bool(names)
        for name, names in hidden.items()
    )


def _summary(name: str) -> str:
    """The first sentence of a module's docstring, on one line."""
    text = (import_module(name).__doc__ or "").strip().partition("\n\n")[0]
    return re.split(r"(?<=\w[.:])\s", " ".join(text.split()))[0].rstrip(".:")


# --- links


def _links(app, doctree) -> None:
    """Rewrite the links of a page to files and folders of the repository, before Sphinx resolves them."""
    here = app.env.docname
    bases = [posixpath.dirname(here)] + [EXECUTED] * here.startswith("notebooks/")
    for kind in (addnodes.pending_xref, addnodes.download_reference):
        for node in list(doctree.findall(kind)):
            if node.get("reftype") == "myst":
                _link(app, here, bases, node)


def _link(app, here: str, bases: list[str], node) -> None:
    target, _, anchor = node["reftarget"].partition("#")
    if node.get("refdomain") == "doc":
        if target in app.env.found_docs:
            return
        paths = [next((f"{target}{suffix}" for suffix in (".ipynb", ".md") if (ROOT / f"{target}{suffix}").is_file()), target)]
    elif target:
        paths = [posixpath.normpath(posixpath.join(base, target)) for base in bases]
    else:
        return
    path = next((path for path in paths if (ROOT / path).exists()), None)
    page = next(filter(None, (_page(app, path) for path in paths)), None)
    if page and page[0] in app.env.found_docs:
        new = addnodes.pending_xref("", *node.children, **{**node.attributes, "refdomain": "doc", "reftarget": page[0]})
        new["reftargetid"] = new.get("reftargetid") or anchor or None
        node.replace_self(new)
    elif page:
        uri = relative_uri(f"{here}.html", f"{page[0]}.html") + (f"#{page[1]}" if page[1] else "")
        node.replace_self(nodes.reference("", "", *node.children, refuri=uri))
    elif path and not (isinstance(node, addnodes.download_reference) and (ROOT / path).is_file()):
        node.replace_self(nodes.inline("", "", *node.children))


def _page(app, path: str) -> tuple[str, str] | None:
    """The site's page for a path of the repository, and the anchor in it."""
    folder, name = posixpath.split(path)
    chapter = f"notebooks/{name.removesuffix('.ipynb')}"
    if folder == EXECUTED and chapter in app.env.found_docs:
        return chapter, ""
    if path in ("notebooks", EXECUTED):
        return CHAPTERS, ""
    if path.removesuffix(".md") in app.env.found_docs:
        return path.removesuffix(".md"), ""
    if path in app.config.sfrik_folders:
        return path, ""
    if folder in app.config.sfrik_folders and name.endswith((".json", ".jsonl")):
        return folder, name
    return None


# --- folders


def _folder_pages(app):
    for path in app.config.sfrik_folders:
        title = path.removeprefix("results/")
        yield path, {"title": title, "body": f"<h1>{html.escape(title)}</h1>\n{_folder_body(app, path)}"}, "page.html"


def _folder_body(app, path: str) -> str:
    files = sorted(file for file in (ROOT / path).iterdir() if file.is_file())
    parts = []
    for file in files:
        name = html.escape(file.name)
        if file.suffix in PICTURES:
            picture = f"{path.removeprefix('results/').replace('/', '-')}-{file.name}"  # table1.svg is in several folders
            copy = Path(app.outdir, "_images", picture)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)
            where = relative_uri(f"{path}.html", f"_images/{picture}")
            if file.suffix == ".mp4":
                parts.append(f'<h2>{name}</h2>\n<video controls loop src="{where}"></video>')
            elif (
                file.suffix != ".png" or not file.with_suffix(".svg").is_file()
            ):  # a PNG with the name of an SVG is the same picture
                parts.append(f'<h2>{name}</h2>\n<img src="{where}" alt="{name}">')
        elif file.suffix in (".json", ".jsonl"):
            text = html.escape(file.read_text(encoding="utf-8"))
            parts.append(f'<details><summary><code>{name}</code></summary>\n<pre id="{name}">{text}</pre></details>')
    notebooks = [f"<code>{html.escape(file.name)}</code>" for file in files if file.suffix == ".ipynb"]
    parts += [f"<p>Also in this folder of the repository: {', '.join(notebooks)}.</p>"] if notebooks else []
    return f"<p>Contents of <code>{html.escape(path)}</code> in the repository.</p>\n" + "\n".join(parts)


def setup(app):
    app.add_config_value("sfrik_folders", folders(), "env")
    app.connect("source-read", _read)
    app.connect("doctree-read", _links)
    app.connect("html-collect-pages", _folder_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
