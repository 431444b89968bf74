import pytest

from hf_loop.evaluation.seed_plots import plot_seeds


LABELS = {"x_label": "blocks", "y_label": "right"}


def test_it_writes_a_png_of_more_variants_than_colours(tmp_path):
    runs = {f"variant {index}": [[1.0, 0.5, index / 20], [0.9, 0.4, 0.0]] for index in range(12)}
    plot_seeds(runs, [2, 4, 256], tmp_path / "figure.png", trained=4, guessing=0.1, **LABELS)
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("runs", [{}, {"a": [[1.0, 0.5]], "b": [[1.0]]}], ids=["none", "too few"])
def test_runs_that_cannot_be_drawn_are_refused(tmp_path, runs):
    with pytest.raises(ValueError, match="every run must have 2 shares"):
        plot_seeds(runs, [2, 4], tmp_path / "figure.png", **LABELS)
    assert list(tmp_path.iterdir()) == []
