"""`make docs`: the site builds without a warning, every link in it leads somewhere, and it needs nothing but its own files."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

import pytest
from browser import chromium

ROOT = Path(__file__).parents[2]
LOADED = {("img", "src"), ("script", "src"), ("iframe", "src"), ("source", "src"), ("video", "src"), ("object", "data")}

for builder in ("sphinx", "furo", "myst_nb", "latex2mathml", "ziamath"):
    pytest.importorskip(builder, reason="make docs needs the extra `docs`")


def extension(name):
    """A module of docs/_ext."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "_ext" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Page(HTMLParser):
    """What a page refers to, and the places in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []  # by the browser, without a click
        self.text = path.read_text()
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        of = {name: value or "" for name, value in attrs}
        self.ids |= {of[name] for name in ("id", "name") if name in of}
        self.links += [of[name] for name in ("href", "src", "data") if name in of and tag != "base"]
        self.loaded += [of[name] for name in ("src", "data") if (tag, name) in LOADED and name in of]
        if tag == "link" and of.get("rel") in ("stylesheet", "preload", "icon", "prefetch"):
            self.loaded.append(of["href"])


@cache
def page(path: Path) -> Page:
    return Page(path)


def broken(site: Path) -> list[str]:
    """Every relative link of the site's pages that leads nowhere, as "page: link"."""
    found = []
    for path in sorted(site.rglob("*.html")):
        for link in page(path).links:
            url = urlsplit(link)
            if url.scheme in ("http", "https", "mailto", "data", "javascript"):
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            anchor = unquote(url.fragment)
            inside = target.is_relative_to(site) and target.is_file()
            if url.scheme or not inside or (anchor and target.suffix == ".html" and anchor not in page(target).ids):
                found.append(f"{path.relative_to(site)}: {link}")
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Built once, by the command of the Makefile in another folder."""
    folder = tmp_path_factory.mktemp("site").resolve()
    (command,) = re.findall(r"^\t\$\(BIN\)python (-m sphinx .*) site$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    command = [sys.executable, *command.replace("site/.doctrees", str(folder / ".doctrees")).split(), str(folder)]
    environment = {**os.environ, "https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}  # nothing is fetched
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert (folder / "searchindex.js").is_file(), done.stderr  # with warnings it is written whole, too
    (folder / ".warnings").write_text(done.stderr)
    return folder


def test_the_site_is_built_without_a_warning(site):
    assert (site / ".warnings").read_text() == ""


def test_every_link_of_the_site_leads_to_a_file_and_a_place_in_it(site):
    assert len(list(site.rglob("*.html"))) > 60
    assert broken(site) == []


def test_the_link_checker_finds_a_missing_page_a_missing_place_and_a_path_of_this_machine(tmp_path):
    (tmp_path / "there.html").write_text('<p id="here"></p>')
    links = ["there.html", "there.html#here", "https://arxiv.org/abs/2208.00789", "#"]
    wrong = ["gone.html", "there.html#gone", "#gone", "/etc/hostname", "file:///etc/hostname", "../outside.html"]
    (tmp_path / "index.html").write_text("".join(f'<a href="{link}"></a>' for link in links + wrong) + '<img src="gone.png">')
    assert broken(tmp_path) == [f"index.html: {link}" for link in [*wrong, "gone.png"]]


def test_a_page_loads_nothing_from_elsewhere(site):
    elsewhere = re.compile(r"https?:|//")
    assert {link for path in site.rglob("*.html") for link in page(path).loaded if elsewhere.match(link)} == set()
    styles = [text for path in site.rglob("*.html") for text in re.findall(r"<style.*?</style>", page(path).text, re.DOTALL)]
    styles += [path.read_text() for path in site.rglob("*.css")]
    assert [url for text in styles for url in re.findall(r"(?:url\(|@import\s*)[\"']?((?:https?:)?//[^)\"']+)", text)] == []


def test_no_page_names_a_folder_of_the_machine_that_built_it(site):
    assert [path.name for path in site.rglob("*.html") if str(ROOT) in page(path).text or str(site) in page(path).text] == []


def test_each_module_of_the_readme_is_in_the_reference(site):
    table = (ROOT / "README.md").read_text().split("| module | what it holds |")[1].split("\n\n")[0]
    modules = {f"sfrik.{name}" for name in re.findall(r"`sfrik\.(\w+)`", table)} - {"sfrik.evaluate"}
    documented = {name for path in (site / "docs" / "api").glob("*.html") for name in page(path).ids}
    assert len(modules) > 15
    assert {f"module-{name}" for name in modules | {"sfrik.evaluate.knn", "sfrik.evaluate.linear"}} <= documented
    assert {
        "sfrik.objectives.SFRIK",
        "sfrik.kernels.RotationInvariantKernel.heat",
        "sfrik.mmd.mmd_to_uniform",
    } <= documented


def test_every_notebook_is_there_and_executed_ones_show_their_figures(site):
    for source in (ROOT / "notebooks").glob("*.ipynb"):
        shown = page(site / "notebooks" / f"{source.stem}.html")
        if (ROOT / "results" / "digits" / "notebooks" / source.name).is_file():
            assert any("_images/" in link for link in shown.loaded), source.name


def test_equations_are_mathml_with_no_latex_left_over(site):
    text = page(site / "notebooks" / "01_kernel_theory.html").text
    equations = re.findall(r"<math.*?</math>", text, re.DOTALL)
    assert len(equations) > 50
    assert [equation for equation in equations if "\\" in equation] == []
    assert [part for part in re.findall(r"<p>.*?</p>", text, re.DOTALL) if "$" in part] == []


def test_a_norm_in_big_bars_grows_as_a_whole_and_keeps_its_power():
    equation = extension("mathml").mathml(r"\Big\| \frac{1}{n} \sum_i z_i \Big\|_F^2", "block")
    (root,) = ElementTree.fromstring(equation)
    (power,) = root
    base = power[0]
    assert power.tag.endswith("msubsup")
    assert [base[0].text, base[-1].text] == ["‖", "‖"]
    assert {bar.get("stretchy") for bar in (base[0], base[-1])} == {"true"}
    assert any(node.tag.endswith("munder") for node in base)  # the sum has its index below


def test_latex_that_cannot_be_rendered_is_an_error_and_not_printed_as_it_is():
    with pytest.raises(ValueError, match="does not know"):
        extension("mathml").mathml(r"\unknowncommand x", "inline")


def test_a_formula_in_a_docstring_is_kept_as_it_stands_and_names_become_links():
    lines = ["Of `sfrik.mmd` with |z| = 1:", "", "    a = *b* | c_", "", "Args:", "    z: rows.", "", "        a = 2 b", ""]
    rewritten = extension("docstrings").rewrite(lines)
    assert rewritten[0] == r"Of :py:obj:`sfrik.mmd` with \|z\| = 1:"
    assert rewritten[2:5] == [".. code-block:: text", "", "    a = *b* | c_"]
    assert "    .. code-block:: text" in rewritten


def test_search_works_from_a_file_path_and_its_first_hit_opens(site):
    with chromium() as browser:
        reader = browser.new_page()
        failed, errors = [], []
        reader.on("requestfailed", lambda request: failed.append(request.url))
        reader.on("pageerror", lambda error: errors.append(str(error)))
        reader.goto((site / "index.html").as_uri())
        reader.wait_for_url("**/docs/index.html")
        reader.fill("input[name=q]", "heat kernel")
        reader.press("input[name=q]", "Enter")
        first = reader.locator("#search-results li a").first
        first.wait_for(timeout=20_000)
        assert reader.locator("#search-results li").count() >= 3
        first.click()
        reader.wait_for_load_state()
        assert "search.html" not in reader.url
        assert "heat" in reader.inner_text("body").lower()
        assert failed == errors == []
