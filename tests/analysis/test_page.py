"""The page: what it says, that it needs nothing from elsewhere, and how a browser shows it."""

import re
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flannel_pl.analysis.reporting.page import Page, Picture, Table, render
from tests.analysis.browser import check_drawing, visit
from tests.analysis.synthetic import make_measures, make_page
from tests.analysis.test_figures import contrast

if TYPE_CHECKING:
    from playwright.sync_api import Browser

VOID = {"meta", "link", "br", "image", "use", "path", "rect", "stop"}


class Parsed(HTMLParser):
    """What is in a page; fails where elements are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def page() -> str:
    return render(make_page(make_measures()))


NASTY = "<script>alert('1')</script> & \"quoted\" \u00b1"


def test_whatever_the_words_are_they_are_words() -> None:
    text = render(
        Page(
            title=NASTY,
            lead=NASTY,
            warnings=[NASTY],
            recorded=[(NASTY, NASTY)],
            key_figures=[(NASTY, NASTY, NASTY)],
            epochs=[Table(NASTY, [NASTY, NASTY], [[NASTY, NASTY]], note=NASTY)],
            comparison=[Table(NASTY, [NASTY], [])],
            pictures=[Picture(NASTY, "<svg ></svg>", NASTY, NASTY, {NASTY: NASTY})],
            left_out=[(NASTY, NASTY)],
            provenance=[(NASTY, NASTY)],
            files=[(NASTY, NASTY)],
        )
    )
    parsed = Parsed(text)
    assert not parsed.all("script")
    assert parsed.text.count(NASTY) == 27
    hrefs = [link["href"] for link in parsed.all("a") if "script" in link["href"]]
    assert len(hrefs) == 2
    assert all(href.startswith("%3Cscript%3E") for href in hrefs)
    assert parsed.all("svg") == [{"role": "img", "aria-label": NASTY}]


def test_a_page_says_all_that_it_was_given(page: str) -> None:
    parsed = Parsed(page)
    for words in (
        "flannel3 <& friends>",
        "run 3 <seed 45> has no loss from step 700",
        "42, 43, 44, 45, 46, 47, 48, 49, 50, 51",
        "depth 0.54 %, in every run",
        "0.159387 \u00b1 0.000143",
        "settings differ: data.corpus",
        "origin radius = mean_i |w_i|",
        "momentum and variance are not recorded",
        "every metric of every run",
    ):
        assert words in parsed.text
    files = [link["href"] for link in parsed.all("a") if not link["href"].startswith("#")]
    assert {"metrics.csv", "figures/radius.png", "figures/radius.svg"} <= set(files)


def test_sections_without_content_are_left_out() -> None:
    assert "<section" not in render(Page("flannel3"))
    parsed = Parsed(render(Page("flannel3", left_out=[("divergence", "a single run")])))
    assert [one["id"] for one in parsed.all("section")] == ["left-out"]
    assert [one["href"] for one in parsed.all("a")] == ["#left-out"]


def test_a_page_needs_nothing_from_elsewhere(page: str) -> None:
    parsed = Parsed(page)
    loaded = [
        value
        for tag, attributes in parsed.tags
        for name, value in attributes.items()
        if name in ("src", "srcset", "data", "poster") or (name.endswith("href") and tag != "a")
    ]
    assert loaded
    assert all(value.startswith(("data:", "#")) for value in loaded)
    style = resources.files("flannel_pl.analysis.reporting").joinpath("page.css").read_text()
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = (one["content"] for one in parsed.all("meta") if "http-equiv" in one)
    assert policy.startswith(
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-"
    )
    assert len(re.findall(r"'sha256-[A-Za-z0-9+/]{43}='", policy)) == 2
    assert re.search(r"https?:|unsafe-eval|script-src[^;]*unsafe-inline", policy) is None
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    assert len(page.encode()) < 8_000_000


def test_ids_are_unique_and_links_lead_somewhere(page: str) -> None:
    parsed = Parsed(page)
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    inside = [
        value[1:]
        for _, attributes in parsed.tags
        for name, value in attributes.items()
        if name.endswith("href") and value.startswith("#")
    ]
    inside += re.findall(r"url\(#([^)]+)\)", page)
    assert len(inside) > 100
    assert set(inside) <= set(ids)


def test_numbers_stand_to_the_right_and_words_to_the_left() -> None:
    rows = [
        ["a", "1.5", "-0.3e-5", "12 %", "1 \u00b1 2", "not reached", "3"],
        ["b", "", "-", "1", "2", "4", "x"],
    ]
    text = render(Page("x", epochs=[Table("t", list("nabcdef"), rows)]))
    kinds = [one["class"] for one in Parsed(text).all("th") if one.get("scope") == "col"]
    assert kinds == ["words", *["number"] * 4, "words", "words"]


def colors(dark: bool) -> dict[str, str]:
    style = resources.files("flannel_pl.analysis.reporting").joinpath("page.css").read_text()
    light_text, dark_text = style.split("@media (prefers-color-scheme: dark)")
    found = dict(re.findall(r"--([\w-]+): (#\w+);", dark_text if dark else light_text))
    assert len(found) == 8
    return found


@pytest.mark.parametrize("dark", [False, True])
def test_contrast_is_that_of_wcag_aa(dark: bool) -> None:
    found = colors(dark)
    for ground in ("ground", "card"):
        for ink in ("ink", "muted", "link"):
            assert contrast(found[ink], found[ground]) > 4.5, (ink, ground)
    assert contrast(found["warn-ink"], found["warn-ground"]) > 4.5


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_a_browser_shows_the_page(
    browser: "Browser", page: str, tmp_path: Path, width: int, scheme: str
) -> None:
    path = tmp_path / "index.html"
    path.write_text(page, encoding="utf-8")
    with visit(browser, path, width=width, scheme=scheme, scripts=False) as tab:
        check_drawing(tab, num_figures=10)
        ground, ink = (
            tab.evaluate(f"getComputedStyle(document.querySelector('{where}')).{what}")
            for where, what in (("body", "backgroundColor"), ("svg", "color"))
        )
    assert [rgb(ground), rgb(ink)] == [colors(scheme == "dark")[name] for name in ("ground", "ink")]


def rgb(computed: str) -> str:
    return "#" + "".join(f"{int(part):02x}" for part in re.findall(r"\d+", computed))
