import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_loop.evaluation import LoopCurve, Results, safe_range
from hf_loop.evaluation.curves import check_loops


def accuracy_curve(values, loops=(1, 2, 4, 8, 16), trained=4.0):
    return LoopCurve("accuracy", "model", list(loops), list(values), trained)


@pytest.mark.parametrize("loops", [[], [0], [-1], [2.5], ["x"], [True], [1, 1]])
def test_check_loops_names_the_bad_value(loops):
    with pytest.raises(ValueError, match="loops"):
        check_loops(loops)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "bleu"}, "metric"),
        ({"values": [0.5]}, "values"),
        ({"num_loops": [2, 1]}, "num_loops must ascend"),
        ({"sequence_accuracy": [1.0]}, "sequence_accuracy"),
        ({"trained_loops": 0.5}, "trained_loops"),
    ],
)
def test_a_curve_checks_its_fields(changes, message):
    fields = {"metric": "accuracy", "label": "m", "num_loops": [1, 2], "values": [0.1, 0.2]} | changes
    with pytest.raises(ValueError, match=message):
        LoopCurve(**fields)


@given(
    values=st.lists(st.floats(min_value=0, max_value=1e9), min_size=1, max_size=6),
    label=st.text(max_size=20),
    trained=st.none() | st.floats(min_value=1, max_value=100),
)
def test_json_round_trip(values, label, trained):
    curve = LoopCurve("perplexity", label, list(range(1, len(values) + 1)), values, trained)
    assert LoopCurve.from_dict(json.loads(json.dumps(curve.to_dict(), allow_nan=False))) == curve


def test_an_infinite_perplexity_survives_as_standard_json():
    curve = LoopCurve("perplexity", "m", [1, 2], [10.0, math.inf], 1.0)
    stored = json.loads(json.dumps(curve.to_dict(), allow_nan=False))
    assert stored["values"] == [10.0, None]
    assert LoopCurve.from_dict(stored) == curve


def test_an_accuracy_that_is_no_number_is_not_taken_for_zero():
    curve = LoopCurve("accuracy", "m", [1, 2], [0.5, math.nan], 1.0, [0.5, math.nan])
    stored = json.loads(json.dumps(curve.to_dict(), allow_nan=False))
    assert (stored["values"], stored["sequence_accuracy"]) == ([0.5, None], [0.5, None])
    loaded = LoopCurve.from_dict(stored)
    assert math.isnan(loaded.values[1]) and math.isnan(loaded.sequence_accuracy[1])
    assert safe_range(loaded) == (1, 1)


def test_from_dict_refuses_unknown_and_missing_fields():
    with pytest.raises(ValueError, match="unknown field 'colour' in a loop curve"):
        LoopCurve.from_dict({"metric": "accuracy", "label": "m", "num_loops": [1], "values": [1.0], "colour": "red"})
    with pytest.raises(ValueError, match="a loop curve lacks the field 'values'"):
        LoopCurve.from_dict({"metric": "accuracy", "label": "m", "num_loops": [1]})


def test_value_at():
    curve = accuracy_curve([0.3, 0.4, 1.0, 1.0, 0.9])
    assert curve.value_at(4) == 1.0
    with pytest.raises(ValueError, match="num_loops=3 was not measured"):
        curve.value_at(3)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.3, 0.4, 1.0, 1.0, 0.99], (4, 16)),
        ([0.3, 0.4, 1.0, 0.9, 1.0], (4, 4)),  # a dip ends the range, what lies beyond it does not count
        ([1.0, 1.0, 0.5, 0.49, 0.2], (1, 8)),  # better than the trained depth is safe
    ],
)
def test_safe_range_of_accuracy(values, expected):
    assert safe_range(accuracy_curve(values)) == expected


def test_safe_range_of_perplexity_is_relative():
    curve = LoopCurve("perplexity", "m", [1, 2, 3, 4], [20.0, 20.9, 21.1, math.inf], 1.0)
    assert safe_range(curve) == (1, 2)
    assert safe_range(curve, tolerance=0.1) == (1, 3)


def test_safe_range_starts_at_the_measured_count_nearest_to_the_trained_depth():
    assert safe_range(accuracy_curve([0.1, 0.2, 0.8, 0.1, 0.1], trained=5.0)) == (4, 4)
    # 3 lies between 2 and 4: the smaller one
    assert safe_range(accuracy_curve([0.1, 0.6, 0.1, 0.1, 0.1], trained=3.0)) == (2, 2)


def test_safe_range_refuses_what_it_cannot_know():
    with pytest.raises(ValueError, match="does not say"):
        safe_range(accuracy_curve([1.0] * 5, trained=None))
    with pytest.raises(ValueError, match="has no safe range: its accuracy at 4 loops, the trained depth, is nan"):
        safe_range(accuracy_curve([1.0, 1.0, math.nan, 1.0, 1.0]))
    with pytest.raises(ValueError, match="tolerance"):
        safe_range(accuracy_curve([1.0] * 5), tolerance=-0.1)


def test_results_round_trip_and_replace_a_curve(tmp_path):
    results = Results(
        curves=[accuracy_curve([0.0] * 5)], command="hf-loop quickstart", seed=3, datasets=["shell_game"]
    )
    results.add_curve(accuracy_curve([1.0] * 5))
    results.add_curve(LoopCurve("perplexity", "model", [1], [20.0]))
    results.save(tmp_path)
    loaded = Results.load(tmp_path)
    assert loaded == results
    assert [curve.values[0] for curve in loaded.curves] == [1.0, 20.0]
    assert [curve.metric for curve in loaded.curves_of("perplexity")] == ["perplexity"]
    assert "torch" in loaded.versions


def test_results_refuse_what_they_do_not_know(tmp_path):
    (tmp_path / "results.json").write_text('{"curvs": []}')
    with pytest.raises(ValueError, match=r"unknown field 'curvs' in .*results\.json; did you mean 'curves'"):
        Results.load(tmp_path)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        Results.load(tmp_path)
