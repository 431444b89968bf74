import json
import math
import sys

import pytest
import torch

from hf_loop.evaluation import DepthControls, depth_controls
from hf_loop.evaluation.depth_control_results import ControlledDepth
from hf_loop.evaluation.readout_batches import split_rows, split_windows

from ..models.hierarchical_variants import tiny_hierarchical
from ..models.loop_lora_models import tiny_loop_lora
from ..models.looped_variants import tiny_looped
from ..models.model_tester import random_ids
from ..models.tiny_backbones import COMMON


def windows(count=12, length=12):
    return list(random_ids(count, length))


def batches(count=12):
    return split_windows(windows(count), batch_size=4)


def row(loops, prefix, **losses):
    names = ("repeat", "suffix", "frozen", "temperature", "gains", "affine")
    return ControlledDepth(loops, prefix, **(dict.fromkeys(names, prefix) | losses), fitted_temperature=1.0)


def example(**changes):
    rows = [
        row(1, 4.0, temperature=3.5, gains=3.0, affine=2.5, repeat=3.0, frozen=5.0),
        row(2, 1.0),
        row(4, 2.0, temperature=2.0, gains=1.8, affine=1.5),
    ]
    return DepthControls("model", 4, False, 10, 10, rows=rows, **changes)


def test_shares_by_hand():
    controls = example()
    assert controls.gap(1) == 2.0
    # both depths are read with their own readout: a gap of 2 becomes 1.5, 1.2 and 1
    assert controls.explained_share(1) == pytest.approx(
        {"temperature": 0.25, "gains": 0.4, "affine": 0.5, "repeat": 0.5, "frozen": -0.5}
    )
    # no share of a gap below zero, or of none
    assert set(controls.explained_share(2).values()) == set(controls.explained_share(4).values()) == {None}
    with pytest.raises(ValueError, match=r"loops=3 was not measured; measured: \[1, 2, 4\]"):
        controls.gap(3)


def test_the_same_loop_again_explains_nothing_where_it_is_the_model_by_definition():
    controls = example()
    controls.shares_loops = True
    assert controls.explained_share(1)["repeat"] is None
    assert controls.explained_share(1)["frozen"] == -0.5


def test_json_round_trip(tmp_path):
    controls = example()
    controls.rows[0] = row(1, 4.0, affine=math.inf)
    controls.save(tmp_path / "controls.json")
    stored = json.loads((tmp_path / "controls.json").read_text())
    assert stored["rows"][0]["affine"] is None and stored["rows"][0]["explained_share"]["affine"] is None
    assert DepthControls.load(tmp_path / "controls.json") == controls
    (tmp_path / "controls.json").write_text('{"label": "m"}')
    with pytest.raises(ValueError, match=r"controls\.json does not hold controls of depth: .*lacks the field"):
        DepthControls.load(tmp_path / "controls.json")


def test_the_naive_losses_are_those_of_the_model():
    model = tiny_looped(num_prelude_layers=1)
    fit, test = batches()
    controls = depth_controls(model, fit, test, [1, 2])
    assert [row.loops for row in controls.rows] == [1, 2, 3]
    assert (controls.num_fit_tokens, controls.num_test_tokens) == (6 * 11, 6 * 11)
    for loops in (1, 2, 3):
        with torch.no_grad():
            losses = [model(**batch, num_loops=loops, use_cache=False).loss.item() for batch in test]
        # of two batches of four and two windows
        assert controls.row(loops).prefix == pytest.approx((2 * losses[0] + losses[1]) / 3, rel=1e-5)
    last = controls.row(3)
    assert last.prefix == last.repeat == last.suffix == last.frozen
    assert controls.row(1).repeat == last.prefix and controls.row(1).suffix == controls.row(1).prefix


@pytest.mark.parametrize(
    ("make", "shares_loops"), [(tiny_hierarchical, True), (tiny_loop_lora, False)], ids=["hierarchical", "loop lora"]
)
def test_other_models_in_half_precision(make, shares_loops):
    model = make().to(torch.bfloat16)
    controls = depth_controls(model, *batches(), [1])
    assert controls.shares_loops == shares_loops
    cut, whole = controls.rows
    assert all(math.isfinite(value) for row in controls.rows for value in vars(row).values())
    assert whole.prefix == whole.repeat == whole.suffix == whole.frozen
    assert (cut.repeat == whole.prefix and cut.suffix == cut.prefix) == shares_loops
    assert not model.training and all(parameter.grad is None for parameter in model.parameters())


def test_loops_that_change_nothing_leave_no_gap():
    model = tiny_looped(num_prelude_layers=1)
    for layer in model.model.core_layers():
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    controls = depth_controls(model, *batches(), [1, 2])
    assert [controls.gap(loops) for loops in (1, 2, 3)] == [0, 0, 0]
    assert set(controls.explained_share(1).values()) == {None}


class Rotation(torch.nn.Module):
    """Turns every state by a quarter, so that four loops bring it back."""

    def forward(self, state, encoded):
        first, second = state.chunk(2, dim=-1)
        return torch.cat([-second, first], dim=-1)


def rotating_model():
    """A model of four loops whose loops compute nothing: they only turn the state, which the head reads after four."""
    model = tiny_looped(num_prelude_layers=1, num_loops=4)
    for layer in model.model.core_layers():
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    model.model.injection = Rotation()
    # of confident predictions
    with torch.no_grad():
        model.lm_head.weight.mul_(8)
    return model


def labelled_by(model, count):
    """Rows with labels that are drawn with the model's own probabilities."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, COMMON["vocab_size"], (count, 24), generator=generator)
    with torch.no_grad():
        probabilities = model(ids, use_cache=False).logits.softmax(-1)
    drawn = torch.multinomial(probabilities.flatten(0, 1), 1, generator=generator).view(count, 24)
    labels = torch.cat([torch.full((count, 1), -100), drawn[:, :-1]], dim=1)
    return [{"input_ids": row, "labels": row_labels} for row, row_labels in zip(ids, labels, strict=True)]


def test_what_only_the_readout_lost_is_explained_by_the_readout():
    model = rotating_model()
    controls = depth_controls(model, *split_rows(labelled_by(model, 100), 60), [1, 2])
    assert controls.gap(1) > 1 and controls.gap(2) > 1
    for loops in (1, 2):
        shares = controls.explained_share(loops)
        assert shares["affine"] == pytest.approx(1, abs=0.1)
        assert shares["temperature"] < 0.8
    # half a turn changes the signs of all features, which gains can undo as well
    assert controls.explained_share(2)["gains"] > controls.explained_share(1)["gains"] + 0.2


def test_a_second_measurement_goes_on_from_the_file(tmp_path, monkeypatch):
    model = tiny_looped(num_prelude_layers=1)
    whole = depth_controls(model, *batches(), [1, 2])
    path = tmp_path / "controls.json"
    depth_controls(model, *batches(), [1], path=path)
    assert [row.loops for row in DepthControls.load(path).rows] == [1, 3]
    measured = []
    # the package's function has the name of its module
    measurement = sys.modules["hf_loop.evaluation.depth_controls"]._Measurement
    measure = measurement.measure
    monkeypatch.setattr(measurement, "measure", lambda self, loops: measured.append(loops) or measure(self, loops))
    controls = depth_controls(model, *batches(), [1, 2], path=path)
    assert measured == [2]
    assert controls == DepthControls.load(path) == whole
    with pytest.raises(ValueError, match=r"measured with other settings \(fit .* there, .* here.*use another folder"):
        depth_controls(model, *batches(16), [1], path=path)


def test_states_that_overflow_have_no_shares():
    model = tiny_looped(num_prelude_layers=1)
    model.model.injection = OverflowAtFirst()
    controls = depth_controls(model, *batches(), [1])
    assert math.isnan(controls.row(1).prefix)
    assert set(controls.explained_share(1).values()) == {None}


class OverflowAtFirst(torch.nn.Module):
    def forward(self, state, encoded):
        return state * math.inf


def test_text_and_rows_are_split():
    texts = [torch.full((5,), number) for number in range(1, 7)]
    fit, test = split_windows([*texts, torch.full((3,), 9), texts[0]], batch_size=2)
    # halves of a text in order; what is in both is not measured, and a shorter window is a batch of its own
    assert [batch["input_ids"][:, 0].tolist() for batch in fit] == [[1, 2], [3, 4]]
    assert [batch["input_ids"][:, 0].tolist() for batch in test] == [[5, 6], [9]]
    fit, test = split_rows([{"input_ids": [number], "labels": [-100]} for number in (1, 2, 3, 4, 5, 1)], 8)
    # every other row
    assert [batch["input_ids"][:, 0].tolist() for batch in fit + test] == [[1, 3, 5], [2, 4]]
    with pytest.raises(ValueError, match="two different windows or rows"):
        split_windows([texts[0], texts[0]], 1)


def test_bad_input_is_named():
    model = tiny_looped()
    fit, test = batches()
    with pytest.raises(ValueError, match="at most the full depth num_loops=3, got 8"):
        depth_controls(model, fit, test, [1, 8])
    with pytest.raises(ValueError, match="must not be fitted to what is measured: 6 rows"):
        depth_controls(model, fit, fit, [1])
    unlabelled = [{"input_ids": random_ids(1, 5), "labels": torch.full((1, 5), -100)}]
    with pytest.raises(ValueError, match="2 labelled tokens to fit to and 1 to measure, got 66 and 0"):
        depth_controls(model, fit, unlabelled, [1])
