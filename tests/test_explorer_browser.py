"""The explorer's page in a browser: scenes, sliders, presets, keyboard, address, and what leaves the page."""

from __future__ import annotations

import os
import shutil

import pytest
import torch

import groupwise
from groupwise.web.explorer import SCENES, explore, fragment_of

api = pytest.importorskip("playwright.sync_api")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium (Debian: apt install chromium)")


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as playwright:
        # A root user, as in containers, has no sandbox.
        sandbox = [] if os.getuid() else ["--no-sandbox"]
        launched = playwright.chromium.launch(executable_path=BROWSER, args=sandbox)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    return explore().to_html(tmp_path_factory.mktemp("page") / "explorer.html").as_uri()


@pytest.fixture
def page(browser, address):
    """The page, which must neither fail nor ask for anything."""
    opened = browser.new_page(reduced_motion="reduce")
    said, asked = [], []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(address)
    yield opened
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    opened.close()


@pytest.fixture(scope="module")
def report_page(tmp_path_factory):
    """The page of a report in a file, and the addresses of its layers."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3), torch.nn.Conv2d(8, 8, 3, padding=1, groups=4))
    made = groupwise.report(model, torch.randn(2, 4, 9, 9), repeats=1)
    path = made.to_html(tmp_path_factory.mktemp("report") / "report.html")
    return path.as_uri(), [fragment_of(row.call.cost) for row in made.rows]


@pytest.mark.parametrize("way", ["click", "keyboard", "address"])
def test_the_rows_of_a_report_open_their_layer(browser, report_page, way):
    address, (_, second) = report_page
    page = browser.new_page(reduced_motion="reduce")
    failed, asked = [], []
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address + second * (way == "address"))
    link = page.locator("td.name a").nth(1)
    if way == "click":
        link.click()
    elif way == "keyboard":
        link.focus()
        page.keyboard.press("Enter")
    frame = page.frame_locator("dialog iframe")
    assert page.locator("dialog").is_visible()
    frame.locator("#says").wait_for()
    for name, value in {"in_channels": "8", "out_channels": "8", "kernel_size": "3", "size": "7", "batch": "2"}.items():
        assert frame.locator(f"[name={name}]").input_value() == value
    assert "4" in frame.locator("#says").inner_text()
    page.locator("dialog button").click()
    assert not page.locator("dialog").is_visible()
    page.locator("th button").nth(3).click()
    assert page.locator("th[aria-sort]").count() == 1, "the tables still sort"
    assert failed == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:", "about:"))] == []
    page.close()


def says(page) -> str:
    return page.locator("#says").inner_text()


def slide(page, selector: str, value: int) -> None:
    page.locator(selector).evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input', {bubbles: true})); }", value
    )


def test_every_scene_of_every_preset_draws(page):
    count = page.locator("#presets button").count()
    assert count >= 11
    for number in range(count):
        page.locator("#presets button").nth(number).click()
        for scene in SCENES:
            page.locator(f"#tab-{scene}").click()
            assert page.locator("#error").inner_text() == ""
            assert len(says(page)) > 20
            assert page.locator(f"#tab-{scene}").get_attribute("aria-selected") == "true"
            assert page.locator("#scene svg, #scene pre").count() > 0
            assert "NaN" not in page.locator("#scene").inner_html()
            assert "undefined" not in page.locator("body").inner_text()


def test_the_slider_parts_the_wires(page):
    slide(page, "#groups", 0)
    assert page.locator(".wire").count() == 8 * 4
    assert "every input reaches every output" in says(page)
    slide(page, "#groups", 1)
    assert page.locator(".wire").count() == 2 * (4 * 2)
    assert page.locator("#groups-value").inner_text() == "2"
    assert "16 of 32 channel pairs" in says(page)
    assert "groups=2" in page.url


def test_a_channel_is_followed(page):
    page.get_by_role("button", name="input channel 3, group 1; follow").press("Enter")
    assert "Input 3 is in group 1: it reaches 1 output, 1, and none of the other 3" in says(page)
    assert "pin=in3" in page.url
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "input channel 3, group 1; follow"
    page.keyboard.press("Space")
    assert "pin" not in page.url


def test_a_filter_is_scrubbed_over_the_image(page):
    page.locator("#tab-filter").click()
    assert "Filter 0 reads 2 inputs, 0-1, of 8: 50 products at position (0, 0)" in says(page)
    slide(page, "[data-keep=filter]", 3)
    slide(page, "[data-keep=column]", 7)
    assert "Filter 3 reads 2 inputs, 6-7, of 8: 50 products at position (0, 7)" in says(page)
    assert "w: kernel 0 × input 7, kernel 1 × input 8, …, kernel 4 × input 11" in page.locator(".sum").inner_text()
    page.locator(".scrub").click(position={"x": 100, "y": 5})
    assert "position (0, 7)" not in says(page)


def test_devices(page):
    page.locator("#tab-devices").click()
    slide(page, "[data-keep=devices]", 8)
    assert "4 devices of 8 hold nothing: there are only 4 groups" in says(page)
    slide(page, "[data-keep=devices]", 3)
    page.locator("[data-keep=next]").select_option("dense")
    # 4 groups on 3 devices: 2, 1, 1; the output of 4x52x52 floats is 43,264 bytes, of which each sends two thirds.
    assert "at best 2 times as fast" in says(page)
    assert "an all-gather of 43.3 kB, of which each device sends 28.8 kB" in says(page)


def test_the_shuffle_spreads_a_group(page):
    page.locator("#tab-shuffle").click()
    page.get_by_role("button", name="follow group 2, with the shuffle").click()
    assert page.locator("#scene rect.empty").count() == 12
    assert "1 of the 4 groups, as it has 1 output" in says(page)


def test_a_wrong_value_says_what_is_valid_and_loses_nothing(page):
    drawn = page.locator("#scene").inner_html()
    page.locator("[name=kernel_size]").fill("99")
    assert "the kernel reaches over 99 positions" in page.locator("#error").inner_text()
    assert page.locator("#scene").inner_html() == drawn
    page.locator("[name=kernel_size]").fill("3x5")
    assert page.locator("#error").inner_text() == ""
    page.locator("[name=in_channels]").fill("6")
    assert page.locator("#groups-value").inner_text() == "2"
    page.locator("[name=stride]").fill("two")
    assert "stride=two is not a whole number" in page.locator("#error").inner_text()


@pytest.mark.parametrize("scene", SCENES)
def test_the_address_brings_everything_back(browser, address, scene):
    first = browser.new_page()
    first.goto(address)
    first.locator("[name=in_channels]").fill("12")
    first.locator("[name=out_channels]").fill("18")
    slide(first, "#groups", 2)
    first.locator("[name=padding]").fill("2x1")
    first.locator(f"#tab-{scene}").click()
    second = browser.new_page()
    second.goto(first.url)
    first.wait_for_timeout(500)
    second.wait_for_timeout(500)
    for part in ("#scene", "#says", "#facts"):
        assert second.locator(part).inner_html() == first.locator(part).inner_html()
    first.close()
    second.close()


def test_tabs_follow_the_arrow_keys(page):
    page.locator("#tab-wires").focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-filter"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.id") == "tab-code"


def test_pictures_are_saved(page):
    with page.expect_download() as svg:
        page.locator("#svg").click()
    source = svg.value.path().read_text(encoding="utf-8")
    assert source.startswith("<svg")
    assert "fill: rgb(" in source
    with page.expect_download() as png:
        page.locator("#png").click()
    assert png.value.path().read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_and_both_themes(browser, address, scheme):
    phone = browser.new_page(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    phone.goto(address)
    for scene in SCENES:
        phone.locator(f"#tab-{scene}").click()
        assert phone.evaluate("document.documentElement.scrollWidth") <= 360, scene
    colours = phone.evaluate("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")
    assert colours == (
        ["rgb(246, 248, 250)", "rgb(31, 35, 40)"] if scheme == "light" else ["rgb(1, 4, 9)", "rgb(230, 237, 243)"]
    )
    phone.close()


def test_wires_move_unless_the_reader_wants_none(browser, address):
    moving = browser.new_page(reduced_motion="no-preference")
    moving.goto(address)
    moving.wait_for_timeout(600)
    before = moving.locator(".wire").first.get_attribute("d")
    slide(moving, "#groups", 0)
    start = moving.locator(".wire").last.get_attribute("d")
    moving.wait_for_timeout(600)
    assert moving.locator(".wire").last.get_attribute("d") != start
    assert before
    moving.close()


def test_a_notebook_frame_works_without_an_address(browser):
    page = browser.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.set_content(explore(6, 6, 3, groups=3, scene="shuffle")._repr_html_())
    frame = page.frame_locator("iframe")
    frame.locator("#tab-wires").click()
    assert frame.locator(".wire").count() == 3 * 4
    assert errors == []
    page.close()
