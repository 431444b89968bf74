"""The page in a headless browser: a prompt is typed, the slider moved, and the tokens change.

Skipped without playwright and Debian's chromium. Pictures of every page are left in pytest's temporary folder.
"""

import shutil
import time

import pytest

from hf_loop.demo.page import Page, serve
from hf_loop.demo.puzzle_page import puzzle_page
from hf_loop.demo.puzzle_reading import PuzzleReader
from hf_loop.demo.text_page import text_page
from hf_loop.demo.text_reading import TextReader

from .models import PROMPT, PUZZLE_TOKENIZER, TOKENIZER, make_model, make_solver


pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("no chromium is installed", allow_module_level=True)
# milliseconds, on a machine with other work
PATIENCE = 120_000


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        # its sandbox needs rights that containers do not give
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, tmp_path):
    """Serve a page, open it, and leave a picture of how the test left it; nothing may be asked of other machines."""
    opened = []

    def open_(blocks):
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(PATIENCE)
        page.strangers, page.faults = [], []
        url = serve(blocks)
        page.on("request", lambda request: page.strangers.extend([request.url] * is_strange(request.url, url)))
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.goto(url)
        opened.append((page, blocks))
        return page

    yield open_
    for page, blocks in opened:
        page.screenshot(path=tmp_path / "page.png", full_page=True)
        blocks.close()
        assert (page.strangers, page.faults) == ([], [])
        page.close()


def is_strange(url, home):
    return not url.startswith((home, "data:", "blob:"))


def texts(page, selector):
    return page.locator(selector).all_inner_texts()


def wait_until(page, condition):
    deadline = time.monotonic() + PATIENCE / 1000
    while not condition():
        assert time.monotonic() < deadline, "the page did not change"
        page.wait_for_timeout(100)


def slide(page, slider, steps):
    """Move a slider by the keyboard, as a hand does by the mouse: one step after the other."""
    handle = page.locator(f"#{slider} input[type=range]")
    handle.focus()
    for _ in range(abs(steps)):
        handle.press("ArrowRight" if steps > 0 else "ArrowLeft")


def ask(page, prompt):
    page.fill("#prompt textarea", prompt)
    page.click("#run")


def text_page_of(kind):
    return text_page(TextReader(make_model(kind), TOKENIZER, kind), Page(kind, "in loops"))


def test_a_looped_model(open_page):
    reader = TextReader(make_model("looped"), TOKENIZER, "looped")
    page = open_page(text_page(reader, Page("looped", "in loops")))
    ask(page, PROMPT)
    page.wait_for_selector("#continuations .column.chosen")
    assert texts(page, "#continuations h4") == ["1 loop", "2 loops", "4 loops (trained)", "8 loops"]
    expected = reader.read(PROMPT, 4, 16, "kl")
    assert texts(page, "#continuations .column p") == [text.strip() for text in expected.continuations.values()]
    assert len(texts(page, "#lens tbody tr")) == 4
    assert page.locator("#lens td.exit").count() == len(expected.inspection.tokens)

    slide(page, "depth", 2)
    wait_until(page, lambda: len(texts(page, "#lens tbody tr")) == 6)
    deeper = reader.read(PROMPT, 6, 16, "kl")
    assert texts(page, "#continuations .chosen h4") == ["6 loops"]
    # other tokens than at the trained depth
    assert texts(page, "#continuations .chosen p") == [deeper.continuations[6].strip()]
    assert deeper.continuations[6] != expected.continuations[4]
    assert texts(page, "#lens thead tr:last-child th")[2:] == deeper.inspection.tokens

    # another rule comes with its own threshold, and is followed at once
    page.click("#exit-rule input")
    page.get_by_role("option", name="stable_argmax").click()
    wait_until(page, lambda: "Exits by stable_argmax at 2:" in page.inner_text("#lens"))
    assert page.input_value("#threshold input") == "2"
    loops = reader.read(PROMPT, 6, 16, "stable_argmax").exits.loops
    rows = page.locator("#lens tbody tr")
    assert [rows.nth(row).locator("td.exit").count() for row in range(6)] == [loops.count(row + 1) for row in range(6)]


def test_a_prompt_that_does_not_fit_is_said_and_the_page_goes_on(open_page):
    page = open_page(text_page_of("looped"))
    page.fill("#threshold input", "0.5")
    page.click("#exit-rule input")
    page.get_by_role("option", name="stable_argmax").click()
    wait_until(page, lambda: page.input_value("#threshold input") == "2")
    page.fill("#threshold input", "0.5")
    ask(page, PROMPT)
    page.wait_for_selector("#continuations .fault")
    assert "`exit_threshold` must be from 1" in page.inner_text("#continuations")
    page.fill("#threshold input", "3")
    page.click("#run")
    page.wait_for_selector("#continuations .column")


def test_a_feedback_model(open_page):
    page = open_page(text_page_of("feedback"))
    assert page.locator("#depth").count() == 0
    ask(page, PROMPT)
    page.wait_for_selector("#memory .block")
    first = texts(page, "#memory .token")
    assert len(texts(page, "#continuations .column")) == 1
    assert "of them directly" in page.inner_text("#memory")
    assert not page.locator("#lens").is_visible()

    ask(page, f"ball:3 {PROMPT}")
    wait_until(page, lambda: len(texts(page, "#memory .token")) == len(first) + 1)
    slide(page, "new-tokens", -3)
    wait_until(page, lambda: len(texts(page, "#memory .token")) == len(first) - 2)


def test_a_feedback_model_over_a_looped_one(open_page):
    page = open_page(text_page_of("feedback over looped"))
    ask(page, PROMPT)
    page.wait_for_selector("#memory .block")
    before = texts(page, "#continuations .chosen p")
    slide(page, "depth", -3)
    wait_until(page, lambda: texts(page, "#continuations .chosen h4") == ["1 loop"])
    assert texts(page, "#continuations .chosen p") != before
    assert len(texts(page, "#lens tbody tr")) == 1


def test_a_puzzle_model(open_page):
    reader = PuzzleReader(make_solver(), PUZZLE_TOKENIZER, "solver")
    page = open_page(puzzle_page(reader, Page("solver", "in segments")))
    # the page opens with a puzzle and its answer
    page.wait_for_selector("#segments table.board")
    assert len(texts(page, "#segments figure")) == 4
    ask(page, "1034\n0401\n0214\n0002")
    wait_until(page, lambda: texts(page, "#answer figure:first-child td.given")[:3] == ["1", "3", "4"])
    reading = reader.read("1034040102140002", 4)
    assert boards(page) == [segment.cells for segment in reading.segments]

    slide(page, "depth", 3)
    wait_until(page, lambda: len(texts(page, "#segments figure")) == 7)
    assert boards(page) == [segment.cells for segment in reader.read("1034040102140002", 7).segments]
    assert "after segment 7" in page.inner_text("#answer")

    cells = page.input_value("#prompt textarea")
    page.click("#another")
    wait_until(page, lambda: page.input_value("#prompt textarea") != cells)


def boards(page):
    """The cells of every board of the segments, blanks as 0."""
    figures = page.locator("#segments figure")
    cells = [figures.nth(index).locator("td").all_inner_texts() for index in range(figures.count())]
    return ["".join(cell or "0" for cell in board) for board in cells]
