"""`make docs`: the site builds without a warning, its links have targets, and it loads nothing but its own files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browser import chromium

ROOT = Path(__file__).parents[2]
LOADED = {("img", "src"), ("script", "src"), ("iframe", "src"), ("source", "src"), ("video", "src"), ("object", "data")}

for builder in ("sphinx", "furo", "myst_nb", "sphinx_copybutton", "sphinx-mathjax-offline"):
    pytest.importorskip(builder, reason="make docs needs the extra `docs`")


class Page(HTMLParser):
    """The links of a page, the files that it loads, and its anchors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []  # by the browser, without a click
        self.text = path.read_text(encoding="utf-8")
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


def broken_links(site: Path) -> list[str]:
    """Every relative link without a target in the site, as "page: link"."""
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
    """The site, built once by the Makefile's command into a temporary folder."""
    folder = tmp_path_factory.mktemp("site").resolve()
    (command,) = re.findall(
        r"^\t\$\(BIN\)python (-m sphinx .*) site$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
    )
    command = [sys.executable, *command.replace("site/.doctrees", str(folder / ".doctrees")).split(), str(folder)]
    environment = {**os.environ, "https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}  # a download would fail
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", timeout=300)
    assert (folder / "searchindex.js").is_file(), done.stderr  # Sphinx writes the whole site even where it warns
    (folder / ".warnings").write_text(done.stderr, encoding="utf-8")
    return folder


def test_the_site_is_built_without_a_warning(site):
    assert (site / ".warnings").read_text(encoding="utf-8") == ""


def test_every_link_of_the_site_has_a_target(site):
    assert len(list(site.rglob("*.html"))) > 60
    assert broken_links(site) == []


def test_the_link_checker_finds_missing_pages_missing_anchors_and_local_paths(tmp_path):
    (tmp_path / "there.html").write_text('<p id="here"></p>', encoding="utf-8")
    links = ["there.html", "there.html#here", "https://arxiv.org/abs/2208.00789", "#"]
    wrong = ["gone.html", "there.html#gone", "#gone", "/etc/hostname", "file:///etc/hostname", "../outside.html"]
    (tmp_path / "index.html").write_text(
        "".join(f'<a href="{link}"></a>' for link in links + wrong) + '<img src="gone.png">', encoding="utf-8"
    )
    assert broken_links(tmp_path) == [f"index.html: {link}" for link in [*wrong, "gone.png"]]


def test_no_page_loads_a_file_from_another_site(site):
    elsewhere = re.compile(r"https?:|//")
    assert {link for path in site.rglob("*.html") for link in page(path).loaded if elsewhere.match(link)} == set()
    styles = [text for path in site.rglob("*.html") for text in re.findall(r"<style.*?</style>", page(path).text, re.DOTALL)]
    styles += [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    assert [url for text in styles for url in re.findall(r"(?:url\(|@import\s*)[\"']?((?:https?:)?//[^)\"']+)", text)] == []


def test_no_page_contains_a_path_of_the_machine_that_built_it(site):
    assert [path.name for path in site.rglob("*.html") if str(ROOT) in page(path).text or str(site) in page(path).text] == []


def test_every_public_module_is_on_the_page_of_its_package(site):
    layout = page(site / "docs" / "api" / "index.html")
    modules = [path.relative_to(ROOT / "sfrik").with_suffix("").parts for path in (ROOT / "sfrik").rglob("[!_]*.py")]
    assert len(modules) > 80
    for package in sorted({parts[0] for parts in modules}):
        assert f"{package}.html" in layout.links, package
        names = {f"sfrik.{package}", *(".".join(["sfrik", *parts]) for parts in modules if parts[0] == package)}
        assert {f"module-{name}" for name in names} <= page(site / "docs" / "api" / f"{package}.html").ids


def test_the_names_that_a_package_exports_are_documented_under_the_package(site):
    assert "sfrik.objectives.SFRIK" in page(site / "docs" / "api" / "objectives.html").ids
    assert "sfrik.kernels.RotationInvariantKernel.heat" in page(site / "docs" / "api" / "kernels.html").ids
    settings = page(site / "docs" / "api" / "settings.html").text
    assert "sfrik_mmd_coeff</span></code> = " in settings  # a field with its default, not an argument of a signature
    assert "FieldInfo" not in settings


def test_an_image_with_a_dark_variant_follows_the_theme(tmp_path):
    for name in ("a.gif", "a_dark.gif", "b.gif"):
        (tmp_path / name).touch()
    sys.path.insert(0, str(ROOT / "docs" / "_ext"))
    from repository import _with_dark_variants

    picture = '<picture>\n  <source media="x" srcset="a_dark.gif">\n  <img alt="A" src="a.gif">\n</picture>'
    two = "```{image} a.gif\n:class: only-light\n:alt: A\n```\n```{image} a_dark.gif\n:class: only-dark\n:alt: A\n```"
    assert _with_dark_variants(picture, tmp_path) == _with_dark_variants("![A](a.gif)", tmp_path) == two
    assert _with_dark_variants("![B](b.gif)", tmp_path) == "![B](b.gif)"


def test_each_module_of_a_package_has_a_line_above_its_reference(site):
    shown = page(site / "docs" / "api" / "kernels.html").text
    summary = re.search(r'href="#module-sfrik.kernels.polynomials".*?</li>', shown, re.DOTALL)[0]
    assert re.sub(r"<[^>]+>|\s+", " ", summary).split(":")[1].strip() == "Legendre polynomials in any dimension"


def test_a_letter_as_description_of_an_argument_is_not_read_as_a_list(site):
    lists = {path.stem for path in (site / "docs" / "api").glob("*.html") if re.search(r"–\s*</p>\s*<ol", page(path).text)}
    assert lists == set()


def test_code_has_copy_buttons_and_their_script_is_part_of_the_site(site):
    shown = page(site / "docs" / "index.html")
    (script,) = [link for link in shown.loaded if "copybutton.js" in link]
    assert "copybutton" in (site / "docs" / script.partition("?")[0]).read_text(encoding="utf-8")


def test_every_notebook_is_there_and_executed_ones_show_their_figures(site):
    for source in (ROOT / "notebooks").glob("*.ipynb"):
        shown = page(site / "notebooks" / f"{source.stem}.html")
        if (ROOT / "results" / "digits" / "notebooks" / source.name).is_file():
            assert any("_images/" in link for link in shown.loaded), source.name


def test_no_equation_is_left_as_text(site):
    shown = page(site / "notebooks" / "01_kernel_theory.html")
    assert len(re.findall(r'class="math notranslate', shown.text)) > 50
    assert [part for part in re.findall(r"<p>.*?</p>", shown.text, re.DOTALL) if "$" in part] == []


def test_mathjax_typesets_every_equation_without_a_network(site):
    with chromium() as browser:
        reader = browser.new_page()
        failed = []
        reader.on("requestfailed", lambda request: failed.append(request.url))
        for path in sorted(site.rglob("*.html")):
            if equations := len(re.findall(r'class="math notranslate', page(path).text)):
                reader.goto(path.as_uri())
                reader.wait_for_function("window.MathJax && MathJax.startup && MathJax.startup.promise")
                reader.evaluate("MathJax.startup.promise.then(() => null)")
                assert reader.locator("mjx-container svg").count() >= equations, path.name
                assert reader.locator("[data-mjx-error]").count() == 0, path.name
                spoken = " ".join(reader.locator("mjx-assistive-mml").all_text_contents())
                assert [word for word in spoken.split() if "\\" in word] == [], path.name
        assert failed == []


def test_search_works_in_local_files_and_its_first_hit_opens(site):
    with chromium() as browser:
        reader = browser.new_page()
        failed, errors = [], []
        reader.on("requestfailed", lambda request: failed.append(request.url))
        reader.on("pageerror", lambda error: errors.append(str(error)))
        reader.goto((site / "index.html").as_uri())
        reader.wait_for_url("**/docs/index.html")
        reader.fill("input[name=q]", "heat kernel")
        reader.press("input[name=q]", "Enter")
        results = reader.locator("#search-results li a")
        results.nth(2).wait_for(timeout=60_000)  # they appear one after the other
        results.first.click()
        reader.wait_for_url(lambda url: "search.html" not in url, timeout=60_000)
        assert "heat" in reader.inner_text("body").lower()
        reader.goto((site / "search.html").as_uri() + "?q=use+this+loss")
        results.first.wait_for(timeout=60_000)
        assert "Use the loss in your code" in results.first.inner_text()
        assert failed == errors == []
