"""On models whose modules are known the search finds them, and says in which loop they work."""

import json

import pytest
import torch

from hf_loop.analysis import MaskTraining, measure_modularity, train_masks
from hf_loop.analysis.modularity import RESULTS_FILE, random_network
from hf_loop.analysis.modularity_overlap import chance_overlap, kept_share, loop_overlaps, overlap
from hf_loop.analysis.modularity_results import ModularityResults
from hf_loop.evaluation import accuracy_over_loops

from .modular_machines import machine_rows, repeating_machine, staged_machine


TRAINING = MaskTraining(num_epochs=25, batch_size=6, learning_rate=0.05, l0_penalty=0.1)
BEST = 2 / 3


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    return measure_modularity(repeating_machine(), machine_rows(2), training=TRAINING, folder=folder), folder


def test_subroutines_in_disjoint_weights_are_modules(results):
    results = results[0]
    assert results.accuracy == {"a": 1.0, "b": 1.0}
    assert results.chance == pytest.approx({"a": 1 / 3, "b": 1 / 3})
    for subroutine in ("a", "b"):
        for per_loop in (False, True):
            (run,) = results.runs_of("trained", subroutine, per_loop)
            assert results.sub_diff(run) == pytest.approx(BEST)
            assert results.abl_diff(run) == pytest.approx(BEST)
        (control,) = results.runs_of("random", subroutine, False)
        assert results.sub_diff(control) < BEST > results.abl_diff(control)
        # a random mask of that size breaks every unit
        assert results.random_sub_diff(run) == pytest.approx(0.0)


def test_the_mask_is_the_block_of_its_subroutine():
    model = repeating_machine()
    masks = train_masks(model, machine_rows(2)["train_b"], TRAINING).hard()[0]
    for name, mask in masks.items():
        weight = model.get_parameter(name)
        if "mlp" not in name:
            # the attention has no say
            assert mask.sum() == 0, name
            continue
        is_down = name.endswith("down_proj.weight")
        of_a, of_b = (mask[:, :3], mask[:, 3:]) if is_down else (mask[:3], mask[3:])
        assert of_a.sum() == 0, name
        # every weight that moves the 1; taking it away where it was is of use and not needed
        used = (weight > 0)[:, 3:] if is_down else (weight > 0)[3:]
        assert of_b[used].all(), name


def test_loops_that_repeat_have_one_mask_and_stages_disjoint_ones(results):
    for subroutine in ("a", "b"):
        (run,) = results[0].runs_of("trained", subroutine, True)
        assert run.loop_overlap[0][1] > 0.7 > 10 * run.chance_overlap[0][1]
    rows = machine_rows(2)
    staged = staged_machine()
    masks = train_masks(staged, rows["train_a"], TRAINING, per_loop=True).hard()
    found, chance = loop_overlaps(masks)
    assert found == [[1.0, 0.0], [0.0, 1.0]]
    assert 0 < chance[0][1] < 0.1
    gates = [masks[loop][next(name for name in masks[loop] if "gate" in name)].sum(1) > 0 for loop in (0, 1)]
    assert gates[0].nonzero().flatten().tolist() == [0, 1, 2]
    assert gates[1].nonzero().flatten().tolist() == [6, 7, 8]


def test_ablation_in_one_loop_is_told_from_ablation_in_all(results):
    (run,) = results[0].runs_of("trained", "a", False)
    # with one turn of two, every answer of A is wrong, and B does not care
    assert run.ablated_in_loop == [{"a": 0.0, "b": 1.0}] * 2
    assert (run.subnetwork, run.ablated) == ({"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 1.0})


def test_ablation_by_random_weights_puts_those_of_a_new_network_in_their_place():
    rows, model = machine_rows(), repeating_machine()
    # masks that stay as they begin keep everything
    training = MaskTraining(num_epochs=1, learning_rate=1e-6)
    found = measure_modularity(model, rows, training=training, ablation="random")
    (run,) = found.runs_of("trained", "a", False)
    assert (run.kept, run.subnetwork) == (1.0, {"a": 1.0, "b": 1.0})
    other = repeating_machine()
    other.model.backbone.layers.load_state_dict(
        {
            name: tensor if "norm" not in name else torch.ones_like(tensor)
            for name, tensor in random_network(model, -1).model.backbone.layers.state_dict().items()
        }
    )
    for name in ("a", "b"):
        expected = accuracy_over_loops(other, rows[f"test_{name}"], [2]).values[0]
        assert run.ablated[name] == expected
    assert found.settings["ablation"] == "random"


def test_differences_of_known_accuracies(results):
    known = ModularityResults("x", [0], {"a": 0.5, "b": 0.3}, {"a": 1.0, "b": 1.0}, {})
    (run,) = results[0].runs_of("trained", "a", False)
    run = type(run)(**vars(run) | {"subnetwork": {"a": 0.9, "b": 0.1}, "ablated": {"a": 0.6, "b": 0.8}})
    # below chance counts as chance: (.9 - .5) - 0 and (.8 - .3) - (.6 - .5)
    assert known.sub_diff(run) == pytest.approx(0.4)
    assert known.abl_diff(run) == pytest.approx(0.4)
    other = type(run)(**vars(run) | {"subroutine": "b"})
    assert known.sub_diff(other) == pytest.approx(-0.4)
    assert known.abl_diff(other) == pytest.approx(-0.4)


def test_overlaps_of_known_masks():
    first = {"x": torch.tensor([1.0, 1, 0, 0]), "y": torch.tensor([1.0, 0])}
    second = {"x": torch.tensor([1.0, 0, 1, 0]), "y": torch.tensor([0.0, 0])}
    assert overlap(first, second) == 1 / 4
    assert overlap(first, first) == 1.0
    # expected: half of the two, and nothing of the empty one, in the union of 2 + 2 - 1 and 1 + 0 - 0
    assert chance_overlap(first, second) == pytest.approx(1 / 4)
    assert kept_share({0: first, 1: first, None: {}}) == 3 / 6
    assert kept_share({0: first, 1: second}) == 5 / 12
    with pytest.raises(ValueError, match="one has no mask of y"):
        overlap(first, {"x": first["x"]})


def test_random_masks_overlap_as_expected():
    torch.manual_seed(0)
    masks = [{"x": (torch.rand(200, 200) < 0.3).float(), "y": (torch.rand(50, 90) < 0.8).float()} for _ in range(2)]
    assert overlap(*masks) == pytest.approx(chance_overlap(*masks), abs=0.01)
    # p^2 / (2p - p^2) of the sizes: (.09 n + .64 m) / (.51 n + .96 m)
    expected = (0.09 * 40_000 + 0.64 * 4500) / (0.51 * 40_000 + 0.96 * 4500)
    assert chance_overlap(*masks) == pytest.approx(expected, abs=0.01)


def test_a_search_goes_on_from_what_was_measured_and_refuses_other_settings(results, tmp_path, monkeypatch):
    results, folder = results
    stored = json.loads((folder / RESULTS_FILE).read_text())
    stored["runs"] = stored["runs"][:3]
    (tmp_path / RESULTS_FILE).write_text(json.dumps(stored))
    (tmp_path / "masks").symlink_to(folder / "masks")
    model, rows, trained = repeating_machine(), machine_rows(2), []
    monkeypatch.setattr(
        "hf_loop.analysis.modularity.train_masks",
        lambda *args, **kwargs: trained.append(kwargs) or train_masks(*args, **kwargs),
    )
    again = measure_modularity(model, rows, training=TRAINING, folder=tmp_path)
    assert len(trained) == 3
    assert again.runs == results.runs
    assert again.pairs == results.pairs
    assert again.to_markdown() == results.to_markdown()
    assert ModularityResults.load(tmp_path / RESULTS_FILE) == again
    with pytest.raises(ValueError, match=r"measured with other settings \(ablation zero there, random here\)"):
        measure_modularity(model, rows, training=TRAINING, folder=tmp_path, ablation="random")
    with pytest.raises(ValueError, match="weights .* there"):
        measure_modularity(random_network(model, 0), rows, training=TRAINING, folder=tmp_path)


def test_two_seeds_are_compared(results):
    # the masks of A and of B share nothing
    assert [(pair.first, pair.second, pair.overlap) for pair in results[0].pairs] == [("a, seed 0", "b, seed 0", 0.0)]
    found = measure_modularity(repeating_machine(), machine_rows(), training=MaskTraining(num_epochs=1), seeds=[0, 1])
    pairs = {(pair.first, pair.second) for pair in found.pairs}
    assert pairs == {
        ("a, seed 0", "b, seed 0"),
        ("a, seed 1", "b, seed 1"),
        ("a, seed 0", "a, seed 1"),
        ("b, seed 0", "b, seed 1"),
    }
    assert "| A | random network | 2 |" in found.to_markdown()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": {"learning_rate": 0.0}}, "learning_rate must be a number above 0, got 0"),
        ({"training": {"num_epochs": 0}}, "`num_epochs` must be an integer of at least 1"),
        ({"training": {"l0_penalty": -1.0}}, "l0_penalty must not be negative"),
        ({"ablation": "mean"}, "ablation must be 'zero' or 'random', got 'mean'"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        training = MaskTraining(**change.pop("training", {}))
        measure_modularity(repeating_machine(), machine_rows(), training=training, **change)


def test_missing_splits_are_named():
    rows = machine_rows() | {"train_b": []}
    with pytest.raises(ValueError, match="got none of train_b"):
        measure_modularity(repeating_machine(), rows)
