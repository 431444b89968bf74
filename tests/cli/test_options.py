import pytest

from hf_loop.cli.load import LayerRange
from hf_loop.cli.options import parse_layer_range, parse_loops


@pytest.mark.parametrize(("text", "counts"), [("1,2,4,8", [1, 2, 4, 8]), ("3", [3]), (" 8, 1 ", [1, 8])])
def test_parse_loops(text, counts):
    assert parse_loops(text) == counts


@pytest.mark.parametrize("entry", ["", "0", "-1", "2.5", "x", "1e3", "²", "+2"])
def test_a_bad_loop_count_is_named(entry):
    with pytest.raises(ValueError, match="is not a loop count") as error:
        parse_loops(f"1,{entry}")
    assert repr(entry) in str(error.value)


def test_a_repeated_loop_count_is_named():
    with pytest.raises(ValueError, match="4 is named twice"):
        parse_loops("4,2,4")


def test_parse_layer_range():
    assert parse_layer_range("10-19") == (10, 19)
    assert parse_layer_range("3-3") == (3, 3)


@pytest.mark.parametrize("text", ["", "3", "5-3", "a-b", "1-2-3", "-1-3", "1.5-3"])
def test_a_bad_layer_range_is_named(text):
    with pytest.raises(ValueError, match=f"{text!r} is not a range of layers"):
        parse_layer_range(text)


def test_a_layer_range_divides_the_layers():
    assert LayerRange().prelude_and_coda(30) == (0, 0)
    assert LayerRange(prelude=2, coda=3).prelude_and_coda(30) == (2, 3)
    assert LayerRange(core="10-19").prelude_and_coda(30) == (10, 10)
    with pytest.raises(ValueError, match="layers are 0 to 11"):
        LayerRange(core="10-19").prelude_and_coda(12)
    with pytest.raises(ValueError, match="leave out --prelude and --coda"):
        LayerRange(core="10-19", coda=1)
    with pytest.raises(ValueError, match="is not a range of layers"):
        LayerRange(core="ten")
