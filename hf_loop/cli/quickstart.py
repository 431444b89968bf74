"""`hf-loop quickstart`: train a small looped model, measure it over loops, save it, load it and ask it.

The task is the shell game as text: "ball:2 1<->2 2<->3" says that the ball is under cup 2, then cups 1 and 2 change
places, then 2 and 3; the answer is "ball:1". Each swap needs the one before it, so a model must take enough steps.
The looped model has one layer, run 6 times on average in training. The model beside it is the same layer run once.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..output_folders import folder_lock, whole_folder
from .save import check_new_folder


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from rich.console import Console
    from transformers import PreTrainedTokenizerBase

    from ..evaluation import LoopCurve
    from ..models import LoopedForCausalLM

NUM_SWAPS = 8
NUM_LOOPS = 6
# twice and four times the trained depth are beyond anything seen in training
LOOPS = [1, 2, 3, 4, 5, 6, 8, 12, 24]
NUM_TEST_GAMES = 512
BATCH_SIZE = 64


def quickstart(
    output_dir: Annotated[Path, typer.Option(help="Where the model and its card go; new or empty.")] = Path(
        "hf_loop_quickstart"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the games, the weights and the depths.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of each model.")] = 1500,
) -> None:
    """Train a small looped model beside one of fixed depth and see it answer better with more loops."""
    command = f"hf-loop quickstart --seed {seed} --steps {steps}"
    is_finished = holds_results(output_dir, command)
    if not is_finished:
        check_new_folder(output_dir)

    import torch
    from rich.console import Console

    from ..tasks import shell_game

    # a second thread gains nothing on a model this small, and costs much where the cores are shared
    torch.set_num_threads(1)
    console = Console()
    splits, tokenizer = shell_game(steps * BATCH_SIZE, NUM_TEST_GAMES, NUM_SWAPS, curriculum=0.25, seed=seed)
    example = splits["test"][0]
    console.print(f"The task: where is the ball?  {example['prompt']}  ->  {example['answer']}", markup=False)
    if not is_finished:
        # from the start, so that a second quickstart into the folder is refused before it has trained
        with whole_folder(output_dir) as folder:
            train_and_save(console, folder, splits, tokenizer, seed, command, name=output_dir.resolve().name)
    print_accuracy(console, output_dir)
    ask_again(console, output_dir, splits["test"].select(range(3)))
    console.print(f"Next: hf-loop generate {output_dir} {example['prompt']!r} --loops 1,2,4,6,12", markup=False)


def holds_results(output_dir: Path, command: str) -> bool:
    """Whether a folder holds what a command has made: its quickstart was interrupted after everything was saved."""
    if not output_dir.is_dir():
        return False
    # the lock moves in what a killed quickstart had finished
    with folder_lock(output_dir):
        if not all((output_dir / name).is_file() for name in ("config.json", "results.json")):
            return False

    from ..evaluation import Results

    return Results.load(output_dir).command == command


def train_and_save(
    console: "Console",
    folder: Path,
    splits: "DatasetDict",
    tokenizer: "PreTrainedTokenizerBase",
    seed: int,
    command: str,
    name: str,
) -> None:
    """Train both models, measure them, and write the model folder."""
    import shutil

    from ..evaluation import accuracy_over_loops

    scratch = folder / "training"
    num_steps = len(splits["train"]) // BATCH_SIZE
    console.print(f"Training the looped model: one layer, 4 to 8 loops, {num_steps} steps")
    # draw the depth of each step: a model trained at one depth is worse at others
    sampled_depth = {"loop_sampling": "uniform", "min_loops": 4, "max_loops": 8}
    looped_model = train(build_model(tokenizer, NUM_LOOPS, seed), splits, tokenizer, seed, scratch, **sampled_depth)
    console.print(f"Training the fixed-depth model: the same layer, once, {num_steps} steps")
    fixed_model = train(build_model(tokenizer, 1, seed), splits, tokenizer, seed, scratch, loop_sampling="fixed")
    shutil.rmtree(scratch)
    curves = [
        accuracy_over_loops(model, splits["test"], LOOPS, batch_size=256, label=label, progress=True)
        for label, model in (("looped", looped_model), ("fixed depth", fixed_model))
    ]
    save(folder, looped_model, tokenizer, curves, splits["test"], seed, command, name)


def build_model(tokenizer: "PreTrainedTokenizerBase", num_loops: int, seed: int) -> "LoopedForCausalLM":
    """Build a looped model over a one-layer Llama; the same seed gives the same weights for every `num_loops`."""
    from transformers import LlamaConfig, set_seed

    from ..models import LoopedConfig, LoopedForCausalLM

    set_seed(seed)
    backbone_config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LoopedForCausalLM(LoopedConfig(backbone_config=backbone_config, num_loops=num_loops))


def train(
    model: "LoopedForCausalLM",
    splits: "DatasetDict",
    tokenizer: "PreTrainedTokenizerBase",
    seed: int,
    scratch: Path,
    **depth: Any,
) -> "LoopedForCausalLM":
    """Train on every training game once, in order, at the depths that `depth` describes."""
    from transformers import DataCollatorForSeq2Seq

    from ..trainer import LoopTrainer, LoopTrainingArguments

    steps = len(splits["train"]) // BATCH_SIZE
    args = LoopTrainingArguments(
        output_dir=str(scratch),
        per_device_train_batch_size=BATCH_SIZE,
        num_train_epochs=1,
        # the games come with the short ones first
        train_sampling_strategy="sequential",
        learning_rate=3e-3,
        # keep the rate high until the last third: this task is then learned sooner than with linear decay
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": steps * 3 // 10},
        warmup_steps=steps // 30,
        weight_decay=0.01,
        logging_steps=100,
        save_strategy="no",
        # Trainer warns about it where there is no accelerator, and these batches are small
        dataloader_pin_memory=False,
        seed=seed,
        **depth,
    )
    # pads the labels as well as the inputs, where games of two lengths meet in one batch
    collator = DataCollatorForSeq2Seq(tokenizer)
    LoopTrainer(model=model, args=args, train_dataset=splits["train"], data_collator=collator).train()
    return model.eval()


def print_accuracy(console: "Console", output_dir: Path) -> None:
    """Print the share of right answers at each loop count, one column for each curve."""
    from rich.table import Table

    from ..evaluation import Results

    curves = Results.load(output_dir).curves

    # a run of an earlier version did not store it
    guessing = "" if curves[0].guessing is None else f" (guessing: {curves[0].guessing:.1%})"
    table = Table(title=f"right answers of {NUM_TEST_GAMES} test games{guessing}")
    table.add_column("loops", justify="right")
    for curve in curves:
        table.add_column(f"{curve.label} (trained at {curve.trained_loops:g})", justify="right")
    for num_loops in LOOPS:
        table.add_row(str(num_loops), *(f"{curve.value_at(num_loops):.1%}" for curve in curves))
    console.print(table)


def save(
    folder: Path,
    model: "LoopedForCausalLM",
    tokenizer: "PreTrainedTokenizerBase",
    curves: "list[LoopCurve]",
    test_games: "Dataset",
    seed: int,
    command: str,
    name: str,
) -> None:
    """Write the model folder: weights, configuration, tokenizer, `results.json`, card and figure."""
    from transformers import GenerationConfig

    from ..evaluation import Results
    from ..evaluation.hub_card import write_card

    # Trainer turned the cache off for training
    model.config.use_cache = True
    # an answer is one word, so every answer also ends the generation
    model.generation_config = GenerationConfig(
        max_new_tokens=1,
        eos_token_id=tokenizer.convert_tokens_to_ids(sorted(test_games.unique("answer"))),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Results(
        curves=curves,
        command=command,
        seed=seed,
        loop_sampling="uniform from 4 to 8",
        prompt=test_games[0]["prompt"],
        notes=[
            f"The model knows the shell game with three cups and up to {NUM_SWAPS} swaps, and nothing else.",
            "The fixed-depth model has as many parameters and saw the same games, but spends less compute on a token.",
        ],
    ).save(folder)
    write_card(folder, name)


def ask_again(console: "Console", output_dir: Path, games: "Dataset") -> None:
    """Load the saved model through the Auto classes and let it generate answers at several loop counts."""
    from rich.table import Table
    from rich.text import Text
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ..loading import load_pretrained

    # annotated, because transformers' own annotations say that there may be no tokenizer
    tokenizer: Any = AutoTokenizer.from_pretrained(output_dir)
    model: Any = load_pretrained(AutoModelForCausalLM, output_dir)
    # Text, because rich would read [brackets] in the name of a folder as markup
    title = Text(f"loaded again from {output_dir}: model.generate(**inputs, num_loops=...)", style="table.title")
    table = Table(title=title)
    table.add_column("loops", justify="right")
    for game in games:
        table.add_column(f"{game['prompt']}\nright answer: {game['answer']}")
    for num_loops in (1, 2, 4, NUM_LOOPS, 2 * NUM_LOOPS):
        cells = []
        for game in games:
            inputs = tokenizer(game["prompt"], return_tensors="pt")
            output = model.generate(**inputs, num_loops=num_loops, do_sample=False)
            answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])
            cells.append(f"{answer} right" if answer == game["answer"] else f"{answer} wrong")
        table.add_row(str(num_loops), *cells)
    console.print(table)
