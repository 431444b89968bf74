"""Repeated segments, and weights that reach the loss of the stock `Trainer`."""

import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from hf_loop.models.weighted_loss import weighted_causal_lm_loss
from hf_loop.trainer.answer_rows import WeightedCollator, repeat_segments
from hf_loop.trainer.data import byte_tokenizer

from .test_state_passing import feedback_model


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def test_a_segment_of_each_row_is_repeated():
    tokens = [list(range(100 * i, 100 * i + 20)) for i in range(30)]
    labels = [[-100] * 15 + row[15:] for row in tokens]
    rows = Dataset.from_dict({"input_ids": tokens, "labels": labels})
    repeated = repeat_segments(rows, mark=[7, 8], length=6, weight=0.25, seed=1)
    starts = set()
    for row, old, old_labels in zip(repeated, tokens, labels, strict=True):
        segment = row["input_ids"][22:]
        start = segment[0] % 100
        starts.add(start)
        assert segment == old[start : start + 6] and len(segment) == 6
        assert row["input_ids"][:22] == [*old, 7, 8]
        assert row["labels"] == [*old_labels, -100, -100, *segment]
        assert row["loss_weights"] == [1.0] * 20 + [0.0] * 2 + [0.25] * 6
    assert min(starts) <= 2 and max(starts) >= 12 and len(starts) > 5
    again, other = (repeat_segments(rows, [7, 8], 6, 0.25, seed=seed) for seed in (1, 2))
    assert again.to_list() == repeated.to_list()
    assert other["input_ids"][:] != repeated["input_ids"][:]


def test_a_row_that_is_shorter_is_repeated_whole():
    rows = Dataset.from_dict({"input_ids": [[4, 5, 6]], "labels": [[4, 5, 6]]})
    assert repeat_segments(rows, [9], length=256)["input_ids"][0] == [4, 5, 6, 9, 4, 5, 6]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "`length` must be an integer of at least 1, got 0"),
        ({"weight": -1}, "weight must not be negative, got -1"),
    ],
)
def test_segments_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        repeat_segments(Dataset.from_dict({"input_ids": [[1]], "labels": [[1]]}), [9], **options)


@pytest.mark.parametrize("side", ["left", "right"])
def test_weights_are_padded_beside_the_labels(side):
    tokenizer = byte_tokenizer()
    tokenizer.padding_side = side
    rows = [
        {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "loss_weights": [1.0, 1.0, 0.5]},
        {"input_ids": [8], "labels": [8], "loss_weights": [0.25]},
    ]
    batch = WeightedCollator(tokenizer)(rows)
    short = [0.0, 0.0, 0.25] if side == "left" else [0.25, 0.0, 0.0]
    assert batch["loss_weights"].tolist() == [[1.0, 1.0, 0.5], short]
    assert ((batch["loss_weights"][1] != 0) == (batch["labels"][1] != -100)).all()
    assert ((batch["attention_mask"][1] == 1) == (batch["labels"][1] != -100)).all()
    with pytest.raises(ValueError, match="loss_weights must be in all rows of a batch or in none, got 1 with them"):
        WeightedCollator(tokenizer)([rows[0], {"input_ids": [8], "labels": [8]}])
    assert "loss_weights" not in WeightedCollator(tokenizer)([{"input_ids": [8], "labels": [8]}])


@pytest.mark.parametrize("micro_batch_size", [8, 1])
def test_the_stock_trainer_weighs_tokens(tmp_path, micro_batch_size):
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(1, 20, (8, 12), generator=generator)
    labels = tokens.masked_fill(torch.rand(8, 12, generator=generator) < 0.5, -100)
    weights = torch.rand(8, 12, generator=generator)
    rows = {"input_ids": tokens.tolist(), "labels": labels.tolist(), "loss_weights": weights.tolist()}
    model = feedback_model(random_state_passing=0.0)
    with torch.no_grad():
        logits = model(tokens, use_cache=False).logits
    expected = weighted_causal_lm_loss(logits, labels, weights, 20)
    args = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=micro_batch_size,
        gradient_accumulation_steps=8 // micro_batch_size,
        use_cpu=True,
        logging_steps=1,
        disable_tqdm=True,
        save_strategy="no",
    )
    collator = WeightedCollator(byte_tokenizer())
    trainer = Trainer(model, args, train_dataset=Dataset.from_dict(rows), data_collator=collator)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)
