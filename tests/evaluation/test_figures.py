"""What all figures share: no display, the format by the file's ending, and files that are written whole."""

import sys

import pytest

from hf_loop.evaluation.figures import COLORS, clear_axes, color_of, count_axis, new_figure, save_figure, share_axis


def make_figure():
    figure = new_figure(3, 2)
    axes = figure.add_subplot()
    axes.plot([1, 2, 4], [0.0, 0.5, 1.0], color=color_of(0))
    count_axis(axes, [1, 2, 4], "loops")
    share_axis(axes, "accuracy")
    clear_axes(axes)
    return figure


@pytest.mark.parametrize(
    "name, start",
    [("figure.png", b"\x89PNG"), ("figure.PDF", b"%PDF"), ("figure.svg", b"<?xml"), ("figure", b"\x89PNG")],
)
def test_the_ending_picks_the_format(name, start, tmp_path):
    save_figure(make_figure(), tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes().startswith(start)
    assert "matplotlib.pyplot" not in sys.modules


def test_an_unknown_format_leaves_the_old_file(tmp_path):
    path = tmp_path / "figure.docx"
    path.write_text("old")
    with pytest.raises(ValueError, match="docx"):
        save_figure(make_figure(), path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_colours_start_again_after_the_last():
    assert [color_of(index) for index in range(len(COLORS) + 1)] == [*COLORS, COLORS[0]]
