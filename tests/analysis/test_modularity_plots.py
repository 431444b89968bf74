import pytest

from hf_loop.analysis.modularity_plots import plot_modularity
from hf_loop.analysis.modularity_results import MaskRun, ModularityResults


def make_results(num_loops, seeds=(0, 1), networks=("trained", "random")):
    runs = []
    for seed in seeds:
        for subroutine in ("a", "b"):
            for network, per_loop in (("trained", False), ("trained", True), ("random", False)):
                accuracies = [{"a": 0.5 + 0.1 * seed, "b": 0.4}, {"a": 0.9, "b": 0.3}]
                is_trained = network == "trained"
                overlap = [[1.0 if i == j else 0.6 for j in range(num_loops)] for i in range(num_loops)]
                run = MaskRun(
                    network, subroutine, per_loop, seed, 0.3, *accuracies, *accuracies,
                    accuracies[:1] * num_loops if is_trained else [], *([overlap] * 2 if per_loop else [[], []]),
                )  # fmt: skip
                runs.append(run)
    runs = [run for run in runs if run.network in networks]
    chance = {"a": 0.5, "b": 0.33}
    return ModularityResults("a model", list(range(num_loops)), chance, {"a": 1.0, "b": 0.99}, {}, runs)


@pytest.mark.parametrize("num_loops", [1, 24])
def test_it_writes_a_png_at_few_and_many_loops(tmp_path, num_loops):
    plot_modularity(make_results(num_loops), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_search_that_has_begun_can_be_drawn(tmp_path):
    results = make_results(3, seeds=(0,))
    results.runs = results.runs[:1]
    plot_modularity(results, tmp_path / "figure.png", title="one mask")
    assert (tmp_path / "figure.png").is_file()
    results.runs = []
    with pytest.raises(ValueError, match="no runs"):
        plot_modularity(results, tmp_path / "other.png")
