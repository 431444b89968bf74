"""Puzzles of several sizes in one batch, single boards, cells and ids out of range, a table of puzzles that grows."""

import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM

from hf_loop import HierarchicalForPuzzle, HierarchicalPuzzleConfig
from hf_loop.models.puzzle_inputs import pad_puzzles

from .puzzle_variants import VARIANTS, puzzles, tiny_puzzle_model
from .tiny_backbones import tiny_backbone


CLOSE = {"atol": 2e-5, "rtol": 2e-5}
SIZES = (4, 9, 6)
ROWS = [puzzles(1, seed, size)[0] for seed, size in enumerate(SIZES)]
LABELS = [puzzles(1, seed + 9, size)[0] for seed, size in enumerate(SIZES)]
MODELS = {name: lambda name=name: tiny_puzzle_model(name) for name in VARIANTS if "mlp" not in name}
MODELS["fixed point"] = lambda: tiny_puzzle_model("trm", halting="fixed_point")


@pytest.fixture
def batch():
    return dict(zip(("input_ids", "attention_mask"), pad_puzzles(ROWS)))


@pytest.mark.parametrize("name", MODELS)
def test_a_smaller_puzzle_is_the_puzzle_alone(name, batch):
    # several segments of random weights amplify what single precision rounds away
    model = MODELS[name]().double().train()
    labels, _ = pad_puzzles(LABELS, -100)
    together = model(**batch, labels=labels, num_segments=2, output_segments=True)
    together.loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    for row, (cells, answers) in enumerate(zip(ROWS, LABELS)):
        alone = model(cells[None], labels=answers[None], num_segments=2, output_segments=True)
        (alone.loss / len(ROWS)).backward()
        for found, expected in zip(together.segment_logits, alone.segment_logits):
            torch.testing.assert_close(found[row, : len(cells)], expected[0], **CLOSE)
        if alone.halt_logits is not None:
            torch.testing.assert_close(together.halt_logits[row], alone.halt_logits[0], **CLOSE)
    for key, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[key], parameter.grad, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
@torch.no_grad()
def test_layers_of_other_decoders_leave_out_padding(model_type, batch):
    config = HierarchicalPuzzleConfig(
        backbone_config=tiny_backbone(model_type), injection="add", state_init="zeros", num_loops=2
    )
    model = HierarchicalForPuzzle(config).eval()
    logits = model(**batch).logits
    for row, cells in enumerate(ROWS):
        torch.testing.assert_close(logits[row, : len(cells)], model(cells[None]).logits[0], **CLOSE)


def test_labels_of_padding_do_not_count(batch):
    model = tiny_puzzle_model()
    labels, _ = pad_puzzles(LABELS, -100)
    expected = model(**batch, labels=labels).loss
    torch.testing.assert_close(model(**batch, labels=labels.clamp(min=1)).loss, expected)


@torch.no_grad()
def test_solve_takes_several_sizes_and_a_single_board(batch):
    model = tiny_puzzle_model("trm", max_segments=3).double()
    solution = model.solve(**batch, blank_token_id=1)
    for row, cells in enumerate(ROWS):
        alone = model.solve(cells, blank_token_id=1)
        assert torch.equal(alone.tokens, solution.tokens[row, : len(cells)])
        assert alone.logits.shape == (len(cells), 6)
        assert (alone.segments, alone.kept) == (solution.segments[row], solution.kept[row])
    assert (solution.tokens[batch["attention_mask"] == 0] == 0).all()
    whole, _ = pad_puzzles(ROWS[:1] * 2)
    assert model.solve(whole).tokens.shape == (2, SIZES[0])


@torch.no_grad()
def test_kept_tells_whether_given_cells_are_kept():
    model, cells = tiny_puzzle_model("trm", max_segments=2), puzzles(4)
    answer = model.solve(cells).tokens
    given = torch.full_like(cells, 1)
    given[:, 2] = answer[:, 2]
    # all blank but one cell, whose answer then may be another
    solution = model.solve(given, blank_token_id=1)
    assert solution.kept.tolist() == (solution.tokens[:, 2] == given[:, 2]).tolist()
    assert model.solve(torch.full_like(cells, 1), blank_token_id=1).kept.all()
    assert model.solve(cells).kept is None


@torch.no_grad()
def test_the_noise_of_a_puzzle_follows_from_the_puzzle(batch):
    model = tiny_puzzle_model("trm", max_segments=2, low_cycles=2).double()
    options = {"num_trajectories": 4, "latent_noise": 2.0, "seed": 3}
    solution = model.solve(**batch, **options)
    for row, cells in enumerate(ROWS):
        torch.testing.assert_close(model.solve(cells, **options).logits, solution.logits[row, : len(cells)], **CLOSE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"input_ids": torch.tensor([[1, 6]])},
            "`input_ids` must be from 0 to 5, the 6 tokens of .* vocabulary, got 6",
        ),
        ({"input_ids": torch.tensor([[1, -1]])}, "`input_ids` must be from 0 to 5, .* got -1"),
        (
            {"input_ids": torch.ones(1, 3, 3, dtype=torch.long)},
            r"the rows of a board one after the other, got .* \[1, 3, 3\]",
        ),
        ({"input_ids": torch.ones(1, 3)}, "`input_ids` must be integers .* got torch.float32"),
        ({"input_ids": torch.ones(0, 3, dtype=torch.long)}, r"`input_ids` must be integers .* \[0, 3\]"),
        ({"puzzle_ids": torch.tensor([3])}, "`puzzle_ids` must be from 0 to 2, the 3 puzzle embeddings .* got 3"),
        ({"puzzle_ids": torch.tensor([-1])}, "`puzzle_ids` must be from 0 to 2, .* got -1"),
        ({"puzzle_ids": torch.tensor([0, 1])}, "`puzzle_ids` must have one id for each of 1 puzzles, got 2"),
    ],
    ids=str,
)
def test_what_is_out_of_range_is_refused_with_a_sentence(arguments, message):
    model = tiny_puzzle_model("trm, wide puzzle")
    arguments = {"input_ids": puzzles(1), **arguments}
    for call in (model, model.solve):
        with pytest.raises(ValueError, match=message):
            call(**arguments)


def test_other_calls_are_refused():
    with pytest.raises(ValueError, match="`puzzle_ids` must be None: the model has no puzzle embeddings"):
        tiny_puzzle_model("trm, no puzzle").solve(puzzles(1), puzzle_ids=torch.tensor([0]))
    with pytest.raises(ValueError, match="`attention_mask` must be 0 at the end of a puzzle only"):
        tiny_puzzle_model()(puzzles(1), attention_mask=torch.tensor([[0] + [1] * 8]))


@pytest.mark.parametrize("loader", [AutoModelForMaskedLM, HierarchicalForPuzzle])
@torch.no_grad()
def test_a_table_of_puzzles_grows_when_it_is_loaded(loader, tmp_path):
    model = tiny_puzzle_model("trm, wide puzzle")
    model.save_pretrained(tmp_path)
    grown = loader.from_pretrained(tmp_path, num_puzzles=5)
    table = grown.model.puzzle_embeddings
    assert (table.num_embeddings, grown.config.num_puzzles) == (5, 5)
    assert torch.equal(table.weight[:3], model.model.puzzle_embeddings.weight)
    assert (table.weight[3:] == 0).all()
    ids, cells = torch.tensor([2, 0, 1]), puzzles()
    assert torch.equal(grown(cells, puzzle_ids=ids).logits, model(cells, puzzle_ids=ids).logits)
    grown.solve(cells, puzzle_ids=torch.tensor([3, 4, 0]), num_segments=1)
    grown.save_pretrained(tmp_path / "grown")
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "grown").config.num_puzzles == 5
    assert AutoModel.from_pretrained(tmp_path, num_puzzles=4).puzzle_embeddings.num_embeddings == 4
    with pytest.raises(ValueError, match="`num_puzzles` must be at least 3, as many as the checkpoint has, got 2"):
        loader.from_pretrained(tmp_path, num_puzzles=2)
