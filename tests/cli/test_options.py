import pytest

from hf_loop.cli.load import LayerRange
from hf_loop.cli.options import parse_loops
from hf_loop.layer_ranges import LayerPlan


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


def test_a_layer_range_divides_the_layers():
    assert LayerRange().plan(30) == LayerPlan(range(0), range(30), range(30, 30))
    assert LayerRange(prelude=2, coda=3).plan(30) == LayerPlan(range(2), range(2, 27), range(27, 30))
    assert LayerRange(core="10-19").plan(30) == LayerPlan(range(10), range(10, 20), range(20, 30))
    assert LayerRange(prelude=4, core="6-11", coda=4).plan(16).kept == [*range(4), *range(6, 16)]
    with pytest.raises(ValueError, match="the model has the layers 0 to 11"):
        LayerRange(core="10-19").plan(12)


@pytest.mark.parametrize("text", ["", "5-3", "a-b", "1-2-3", "-1-3", "1.5-3", "ten"])
def test_a_bad_layer_range_is_named(text):
    with pytest.raises(ValueError, match="`--core` must be FIRST-LAST") as error:
        LayerRange(core=text)
    assert repr(text) in str(error.value)
