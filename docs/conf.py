"""The site of `make docs`: this repository's pages, notebooks, tables and docstrings, by Sphinx. Nothing is fetched or executed.

The source directory is the repository itself, so that the links between its files are the links between the site's pages:
`docs/_ext/repository.py` turns those that lead out of the site (run folders, code) into ones that work. Equations become MathML
here and not in the browser (`docs/_ext/mathml.py`): no script, no font, and a page reads from a file path without a network.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]

import sfrik  # noqa: E402

project = "sfrik"
author = "the authors of sfrik"
version = release = sfrik.__version__
html_title = f"sfrik {version}"

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_nb", "mathml", "docstrings", "repository"]
root_doc = "docs/index"
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs/*.md",
    "docs/api/*.rst",
    "notebooks/*.ipynb",
]
include_patterns += ["results/README.md", "results/digits/README.md", "results/digits/*/README.md", "results/digits/tables/*.md"]
exclude_patterns = [".*", "site", "build", "data", "sfrik", "tests", "benchmarks", "*.egg-info", "docs/_*", "results/smoke"]
nitpicky = False

html_theme = "furo"
html_static_path = ["_static"]
html_extra_path = ["_extra"]  # index.html, which leads to docs/index.html
html_css_files = ["sfrik.css"]
html_math_renderer = "mathml"
html_show_search_summary = False  # a summary is read from the page by a request, which a browser refuses from a file path
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
pygments_style, pygments_dark_style = "tango", "github-dark"

myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 4
nb_execution_mode = "off"
nb_ipywidgets_js: dict = {}  # a widget's script would come from a CDN; its saved picture or text is shown
nb_merge_streams = True
nb_render_markdown_format = "myst"  # tables, and links that are followed

default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100
napoleon_numpy_docstring = False
napoleon_use_ivar = True
