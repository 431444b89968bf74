"""What all figures share: no display, the format by the file's ending, and files that are written whole."""

import sys

import pytest

from hf_loop.evaluation.figures import (
    clear_axes,
    count_axis,
    legend_below,
    new_figure,
    save_figure,
    share_axis,
    style_of,
)


def make_figure():
    figure = new_figure(3, 2)
    axes = figure.add_subplot()
    axes.plot([1, 2, 4], [0.0, 0.5, 1.0], **style_of(0))
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


def test_every_series_has_a_style_of_its_own_until_there_are_no_more():
    styles = []
    with pytest.raises(ValueError, match="can tell 140 series apart"):
        for index in range(1000):
            styles.append(tuple(style_of(index).values()))
    assert len(styles) == len(set(styles)) == 140


def test_one_legend_of_several_panels_names_each_label_once():
    figure = new_figure(6, 3)
    for axes in figure.subplots(1, 2):
        axes.plot([0, 1], [0, 1], label="shared")
    legend_below(figure)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["shared"]
