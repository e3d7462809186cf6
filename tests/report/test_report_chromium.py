"""The pages in a real browser: images load, no errors, no requests, nothing sticks out, axe-core
finds nothing, and what the script adds works."""

from __future__ import annotations

import io
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from chromium import Page, chromium, find
from folders import write_experiment, write_run
from PIL import Image

from percmae.registry.judging import Decision
from percmae.report import report
from percmae.report.decision import render_decision
from percmae.stages.index import index

pytest.importorskip("websocket", reason="driving Chromium needs the websocket-client package")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find() is None, reason="Chromium is not installed (apt-get install chromium)"
    ),
]

SIDES = (("champion", 3), ("challenger", 2))
LONG = ["<script>alert(1)</script>", "tench & co", "a class with quite a long name, really"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("chromium") / "profile") as page:
        yield page


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A whole report, one of many seedless and long-named things, one with next to nothing; the
    index of all of it; and a decision between two models."""
    root = tmp_path_factory.mktemp("pages")
    long = {"tag": "a" * 63, "names": LONG * 6}
    bare = [write_run(root / "bare", accuracy=None)]
    runs = {
        "whole": write_experiment(root / "whole"),
        "long": write_experiment(root / "long", seeds=6, **long),
        "bare": bare,
    }
    for name, folders in runs.items():
        report(folders, str(root / "out" / name))
    index(str(root))
    found = {name: root / "out" / name / "report.html" for name in runs}
    (root / "decision.html").write_text(render_decision(decision(), [picture()] * 24))
    return {**found, **{name: root / f"{name}.html" for name in ("index", "decision")}}


def decision() -> dict[str, Any]:
    """As of a contest whose challenger was refused, with as many images as are shown."""
    said = {"key": "a/b.png", "label": LONG[0], "champion": LONG[0], "challenger": LONG[2]}
    sides = {side: {"version": n, "run": f"s3://b/r{n}", "share": n / 4} for side, n in SIDES}
    worst = {"wnid": "n1", "name": LONG[2], "samples": 40, "champion": 0.9, "challenger": 0.6}
    about = {"when": "2026-11-01T10:00:00+00:00", "model": "s3://b/models/m", "alias": "champion"}
    counts = {"images": 1000, "differing": 300, "won": 100, "lost": 150}
    return Decision.model_validate(
        {
            **about,
            **sides,
            **counts,
            "rule": {"metric": "top1", "max_class_drop": None},
            "outcome": "keep",
            "why": "version 3 stays champion, " + "for one reason or another, " * 6,
            "data": {"uri": "s3://b/manifest.json", "digest": "sha256:" + "0a" * 32},
            "test": "sha256:" + "0b" * 32,
            "gain": -0.25,
            "p_value": 0.4,
            "worst": worst,
            "shown": [said] * 24,
        }
    ).model_dump(mode="json")


def picture() -> bytes:
    made = io.BytesIO()
    Image.new("RGB", (28, 28), "teal").save(made, "PNG")
    return made.getvalue()


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize(
    ("name", "images"), [("whole", 3), ("long", 6), ("bare", 1), ("index", 0), ("decision", 24)]
)
def test_page_is_sound(
    browser: Page, pages: dict[str, Path], name: str, images: int, width: int
) -> None:
    found = browser.look(pages[name].as_uri(), width, dark=width == 400)
    assert found == {"images": images, "broken": [], "overflow": 0, "outside": [], "trouble": []}


@pytest.mark.parametrize("name", ["whole", "index", "decision"])
@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing(browser: Page, pages: dict[str, Path], name: str, dark: bool) -> None:
    browser.look(pages[name].as_uri(), 1280, dark=dark)
    assert axe(browser) == []


def test_axe_sees_what_is_wrong(browser: Page, pages: dict[str, Path]) -> None:
    browser.look(pages["bare"].as_uri(), 1280)
    browser.evaluate("document.querySelector('main img').removeAttribute('alt')")
    assert "image-alt" in axe(browser)


def axe(browser: Page) -> list[str]:
    """The rules of axe-core that the page breaks."""
    script = resources.files("axe_core_python").joinpath("axe.min.js").read_text("utf-8")
    browser.evaluate(f"{script};0")
    found = browser.evaluate("axe.run().then(found => found.violations.map(rule => rule.id))")
    return list(found)


def test_a_table_is_sorted_and_filtered(browser: Page, pages: dict[str, Path]) -> None:
    browser.look(pages["index"].as_uri(), 1280)
    rows = "[...document.querySelectorAll('#runs-table tbody tr')]"
    column = f"{rows}.map(row => row.cells[5].textContent.trim())"
    click = "document.querySelectorAll('#runs-table thead button')[5].click()"
    browser.evaluate(click)
    up = browser.evaluate(column)
    browser.evaluate(click)
    down = browser.evaluate(column)
    figures = [float(text) for text in up if text != "–"]
    assert len(set(figures)) > 3
    assert figures == sorted(figures)
    assert up == [*map(str, figures), *["–"] * (len(up) - len(figures))]
    assert down[: len(figures)] == [str(x) for x in reversed(figures)]
    assert set(down[len(figures) :]) == {"–"}  # without a value last, either way
    browser.evaluate(
        "(() => { const field = document.querySelector('input[data-filters]');"
        "field.value = 'Fine-TUN'; field.dispatchEvent(new Event('input')); })()"
    )
    left = browser.evaluate(f"{rows}.filter(row => !row.hidden).map(row => row.textContent)")
    assert left
    assert len(left) < len(up)
    assert all("fine-tuning" in text.lower() for text in left)


def test_a_chart_is_zoomed_into_and_back(browser: Page, pages: dict[str, Path]) -> None:
    browser.look(pages["whole"].as_uri(), 1280)

    def chart() -> Any:
        return browser.evaluate(
            "(svg => ({steps: [...svg.querySelectorAll(':scope > g > text[text-anchor=middle]')]"
            ".map(tick => Number(tick.textContent)),"
            "paths: [...svg.querySelectorAll('path[clip-path]')].map(p => p.getAttribute('d')),"
            "zoomed: svg.classList.contains('zoomed')}))(document.querySelector('svg[data-plot]'))"
        )

    def drag(*places: tuple[float, float]) -> None:
        box = browser.evaluate(
            "(svg => { svg.scrollIntoView(); const b = svg.getBoundingClientRect();"
            "const p = JSON.parse(svg.dataset.plot), s = b.width / svg.viewBox.baseVal.width;"
            "return [b.x + s * p.left, b.y + s * p.top, s * (p.right - p.left), "
            "s * (p.bottom - p.top)]; })(document.querySelector('svg[data-plot]'))"
        )
        for kind, (x, y) in zip(("Pressed", "Moved", "Released"), places, strict=True):
            browser.call(
                "Input.dispatchMouseEvent",
                type=f"mouse{kind}",
                x=box[0] + x * box[2],
                y=box[1] + y * box[3],
                button="left",
                buttons=int(kind != "Released"),
                clickCount=1,
            )

    before = chart()
    drag((0.0, 0.0), (0.3, 0.5), (0.5, 1.0))  # steps 0 to 200 with a margin: the first half
    zoomed = chart()
    assert zoomed["zoomed"]
    assert zoomed["paths"] != before["paths"]
    assert zoomed["steps"] == [0, 50, 100]
    browser.evaluate(
        "document.querySelector('svg[data-plot]')"
        ".dispatchEvent(new KeyboardEvent('keydown', {key: '0'}))"
    )
    assert chart() == before


def test_originals_slide_over_their_reconstructions(browser: Page, pages: dict[str, Path]) -> None:
    browser.look(pages["whole"].as_uri(), 1280)
    shown = "document.querySelectorAll('.gallery')[0].children.length"
    while not browser.evaluate(shown):  # once the picture is decoded
        pass
    assert browser.evaluate(shown) == 6
    cut = "getComputedStyle(document.querySelector('.gallery > div > div + div')).clipPath"
    found = []
    for value in (0, 100):
        browser.evaluate(
            f"(field => {{ field.value = {value}; field.dispatchEvent(new Event('input')); }})"
            "(document.querySelector('.slider input'))"
        )
        found.append(browser.evaluate(cut))
    assert found[0] != found[1]


def test_small_pictures_are_shown_enlarged_and_crisp(browser: Page, pages: dict[str, Path]) -> None:
    browser.look(pages["bare"].as_uri(), 1280)
    rendering = "getComputedStyle(document.images[0]).imageRendering"
    assert browser.evaluate(rendering) == "pixelated"
    enlarged = "document.images[0].clientWidth / document.images[0].naturalWidth"
    assert browser.evaluate(enlarged) == 3


def test_both_colour_schemes_are_used(browser: Page, pages: dict[str, Path]) -> None:
    grounds = []
    for dark in (False, True):
        browser.look(pages["bare"].as_uri(), 1280, dark=dark)
        grounds.append(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert grounds == ["rgb(246, 247, 249)", "rgb(15, 19, 24)"]


@pytest.mark.parametrize(
    ("fault", "key"),
    [
        ('<img src="data:image/png;base64,AAAA" alt="">', "broken"),
        ('<div style="width: 2000px">wide</div>', "overflow"),
        ('<img src="http://127.0.0.1:9/x.png" alt="">', "trouble"),
        ("<script>throw new Error('x')</script>", "trouble"),
        ("<script>console.error('x')</script>", "trouble"),
    ],
)
def test_the_check_sees_a_broken_page(
    browser: Page, pages: dict[str, Path], tmp_path: Path, fault: str, key: str
) -> None:
    text = pages["bare"].read_text()
    # Without its content policy, which would stop scripts before they fail.
    text = text[: text.index("<meta http-equiv")] + text[text.index('<link rel="icon"') :]
    broken = tmp_path / "broken.html"
    broken.write_text(text.replace("</main>", f"{fault}</main>"))
    assert browser.look(broken.as_uri(), 400)[key], "the fault went unnoticed"
