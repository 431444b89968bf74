"""The drawings say what the reading says, and a token is text, whatever it looks like."""

import re

from hf_loop.analysis.inspection_results import Inspection
from hf_loop.demo.depth import DepthSlider
from hf_loop.demo.memory_view import MemoryView
from hf_loop.demo.style import CSS, fill
from hf_loop.demo.text_html import draw_continuations, draw_lens, draw_memory
from hf_loop.demo.text_reading import ExitView, TextReading


SLIDER = DepthSlider("num_loops", "loops", 2, 8)


def make_reading(**fields):
    inspection = Inspection(
        label="m",
        prompt="<b> x",
        readout="answer",
        trained_loops=2,
        positions=[0, 1, 2],
        tokens=["<b>", "x", "a long token of text"],
        top=[["<i>", "y", "z"], ["w", "y", "z"], ["w", "v", "z"]],
        probability=[[0.1, 0.9, None], [0.2, 0.9, 0.5], [0.3, 0.4, 0.5]],
        step_norm=[None, 0.5, 0.25],
        cosine=[None] * 3,
        acceleration=[None] * 3,
        distance_to_final=[None] * 3,
        periods=[0, 0, 0],
        since=[0, 0, 0],
    )
    values = {
        "prompt": "<b> x",
        "depth": 3,
        "continuations": {1: "one <two>", 3: "one three", 4: "", 5: "\n "},
        "inspection": inspection,
        "num_new": 1,
        "exits": ExitView("kl", 0.5, 3, [2, 3, 1], [True, True, False]),
        "tokens": [],
        "memory": None,
    }
    return TextReading(**values | fields)


def test_continuations_are_side_by_side_and_their_differences_are_marked():
    html = draw_continuations(make_reading(), SLIDER)
    assert re.findall("<h4>(.*?)</h4>", html) == ["1 loop", "3 loops", "4 loops", "5 loops"]
    assert 'one <span class="other">&lt;two&gt;</span>' in html
    assert re.findall(r'column chosen"><h4>(.*?)</h4><p>(.*?)</p>', html) == [("3 loops", "one three")]
    assert html.count("the model ends the text here") == 1 and "white space: &#x27;\\n &#x27;" in html
    alone = draw_continuations(make_reading(depth=None, continuations={None: "text"}), None)
    assert "<h4>continuation</h4><p>text</p>" in alone


def test_a_row_of_the_lens_is_a_loop_and_the_exit_is_framed():
    html = draw_lens(make_reading())
    rows = html.split("<tbody>")[1].split("</tr>")[:3]
    cells = [re.findall(r'<td class="([^"]*)" title="([^"]*)"[^>]*>(.*?)</td>', row) for row in rows]
    assert [[text for _, _, text in row] for row in cells] == [
        ["&lt;i&gt;", "y", "z"],
        ["w", "y", "z"],
        ["w", "v", "z"],
    ]
    kinds = [[kind for kind, _, _ in row] for row in cells]
    assert kinds == [
        ["", "", "first-new exit"],
        ["exit", "", "first-new skipped"],
        ["skipped", "exit", "first-new skipped"],
    ]
    assert cells[0][0][1] == "&lt;b&gt; → &lt;i&gt;, 0.10, loop 1"
    assert "2 (trained)" in rows[1] and '<td class="step"></td>' in rows[0] and "0.25" in rows[2]
    assert "a long toke…" in html
    assert "these 3 tokens run 2.0 of 3 loops in the mean (33% are skipped), and 2 of 3 still have" in html
    assert "exit" not in draw_lens(make_reading(exits=None)).replace("exits", "")


def test_a_model_without_loops_has_no_lens():
    assert "has no loops" in draw_lens(make_reading(inspection=None))


def test_text_on_a_cell_can_be_read():
    assert "white" in fill(0.9) and "white" not in fill(0.3) and fill(None) == ""


def test_memory_is_drawn_block_by_block():
    memory = MemoryView("block", 2, [0, 0, 1, 1, 2], [False, False, True, True, True], True, "2 vectors")
    html = draw_memory(make_reading(tokens=["b", "<c>", "d", "e"], memory=memory))
    blocks = html.split('<div class="block">')[1:]
    assert [re.search("<h4>(.*?)</h4>", block)[1] for block in blocks] == ["block 1", "block 2", "block 3"]
    assert re.findall(r'<span class="(token[^"]*)">(.*?)</span>', html) == [
        ("token gone", "b"),
        ("token", "&lt;c&gt;"),
        ("token", "d"),
        ("token", "e"),
    ]
    assert "5 tokens in blocks of 2. The next token reads 3 of them directly" in html
    assert "other 2 through the memory alone: 2 vectors" in html
    assert draw_memory(make_reading()) == ""


def test_no_selector_of_the_style_sheet_is_a_list_with_dark():
    # gradio puts its own prefix before each, and mistakes the others of such a list for dark ones
    for selectors in re.findall(r"([^{}]+)\{", CSS):
        assert not (".dark" in selectors and "," in selectors), selectors
