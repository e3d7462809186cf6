"""The page in a real browser: images load, no errors, no requests, nothing sticks out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Page, chromium, find
from folders import write_experiment, write_run

from percmae.report import report

pytest.importorskip("websocket", reason="driving Chromium needs the websocket-client package")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find() is None, reason="Chromium is not installed (apt-get install chromium)"
    ),
]

LONG = ["<script>alert(1)</script>", "tench & co", "a class with quite a long name, really"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("chromium") / "profile") as page:
        yield page


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A whole report, one of many seedless and long-named things, one with next to nothing."""
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
    return {name: root / "out" / name / "report.html" for name in runs}


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize(("name", "images"), [("whole", 3), ("long", 6), ("bare", 1)])
def test_page_is_sound(
    browser: Page, pages: dict[str, Path], name: str, images: int, width: int
) -> None:
    found = browser.look(pages[name].as_uri(), width, dark=width == 400)
    assert found == {"images": images, "broken": [], "overflow": 0, "outside": [], "trouble": []}


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
