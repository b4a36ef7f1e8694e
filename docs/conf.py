"""The site of `make docs`: the repository's pages, notebooks, tables and docstrings, built by Sphinx. Nothing is fetched or run.

The source directory is the repository itself, so links between its files become links between pages of the site.
`docs/_ext/repository.py` rewrites the links that lead to files outside the site (run folders, code). MathJax typesets the
equations in the reader's browser; the site contains its own copy (version 3.2.2, Apache-2.0, from the package
sphinx-mathjax-offline), so a page also works when opened as a local file without a network.
"""

import sys
from importlib.resources import files
from inspect import get_annotations
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]

from sphinx.util.rst import escape  # noqa: E402

import sfrik  # noqa: E402

project = "sfrik"
author = "the authors of sfrik"
version = release = sfrik.__version__
html_title = f"sfrik {version}"

extensions = ["sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon", "myst_nb", "sphinx_copybutton", "repository"]
root_doc = "docs/index"
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs/*.md",
    "docs/api/*",
    "notebooks/*.ipynb",
]
include_patterns += [
    "results/README.md",
    "results/claims.md",
    "results/*/README.md",
    "results/*/*/README.md",
    "results/*/tables/*.md",
]
exclude_patterns = [".*", "site", "build", "data", "runs", "sfrik", "tests", "benchmarks", "*.egg-info", "docs/_*"]
nitpicky = False

html_theme = "furo"
html_static_path = ["_static", str(files("sphinx-mathjax-offline") / "static" / "mathjax" / "tex-svg-full.js")]
html_extra_path = ["_extra"]  # index.html, which leads to docs/index.html
html_css_files = ["sfrik.css"]
mathjax_path = "tex-svg-full.js"  # draws with outlines: no font files
mathjax3_config = {"tex": {"packages": {"[+]": ["textmacros"]}}}  # for \_ in \text
html_show_search_summary = False  # a summary is read from the page by a request, which a browser refuses from a file path
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
copybutton_prompt_text, copybutton_prompt_is_regexp = r">>> |\.\.\. ", True  # what is copied runs
copybutton_only_copy_prompt_lines = False
pygments_style, pygments_dark_style = "tango", "github-dark"

myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 4
nb_execution_mode = "off"
nb_ipywidgets_js: dict = {}  # a widget's script would come from a CDN; its saved picture or text is shown
nb_merge_streams = True
nb_render_markdown_format = "myst"  # tables, and links that are followed

default_role = "py:obj"  # `sfrik.mmd` becomes a link; a name without a target is shown as code
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100
napoleon_numpy_docstring = False
napoleon_use_ivar = True


# The reference shows a settings class as the list of its fields, in place of a signature with a hundred arguments.
def list_fields(app, what, name, obj, options, lines):
    if what == "class" and hasattr(obj, "model_fields"):
        fields = {name: obj.model_fields[name] for name in get_annotations(obj) if name in obj.model_fields}
        lines += [
            "",
            *(f"- ``{name}`` = ``{field.default!r}``: {escape(field.description or '')}" for name, field in fields.items()),
        ]


def hide_arguments(app, what, name, obj, options, signature, result):
    return ("", None) if what == "class" and hasattr(obj, "model_fields") else None


def setup(app):
    app.connect("autodoc-process-docstring", list_fields)
    app.connect("autodoc-process-signature", hide_arguments)
    app.connect("autodoc-skip-member", lambda app, what, name, obj, skip, options: name == "model_config" or None)
