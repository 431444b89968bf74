"""Decoding of a looped model whose tokens exit by a rule: in lockstep and by continuous depth batching, as ratios.

    python training/benchmarks/depth_batching.py                                    # about 15 minutes on one CPU core
    python training/benchmarks/depth_batching.py --rounds 3 --skips 0.5             # a quick look
    python training/benchmarks/depth_batching.py --model outputs/python_source --prompts held_out.txt \
        --criterion state_change --thresholds 0.03,0.1

Without a model: a looped Llama of random weights whose exits are as good as random, drawn from the state. In every
round the same prompts are continued in five ways, one after the other, in an order that alternates:

    fixed      `generate` in batches, every token through all loops
    engine     `generate_depth_batch` without a rule
    lockstep   `generate` in batches with the rule: a row that exits leaves the batch until the next token
    batched    `generate_depth_batch` with the rule
    one loop   `generate` in batches, which tells the time outside of the loop

All have the same number of rows in a call. The first columns are layer-row calls of the core, counted, and processor
time (the median over rounds, between quartiles), both divided by those of `fixed`. A saving is also given as a share
of the loops that the rule skips. The ideal time is that of `fixed` without the skipped loops' part of it.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

import hf_loop
from hf_loop.loading import load_pretrained
from hf_loop.models.exits import ExitRule


class DrawnExits(ExitRule):
    """Exits drawn for every token from signs of its first state: a geometric number of loops with a given mean.

    Args:
        mean_loops (`float`): mean number of loops.
        num_loops (`int`): the largest number.
    """

    name = "drawn"

    def __init__(self, mean_loops: float, num_loops: int):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        uniform = torch.linspace(0.5, 1023.5, 1024)[torch.randperm(1024, generator=generator)] / 1024
        low, high = 1e-3, 1 - 1e-9
        for _ in range(60):
            middle = (low + high) / 2
            # loops are 1 + the number of failures before a success
            loops = 1 + (uniform.double().log() / torch.tensor(middle).double().log()).floor()
            self.table = loops.clamp(max=num_loops).long()
            low, high = (low, middle) if self.table.double().mean() > mean_loops else (middle, high)
        self.bits = 2 ** torch.arange(10)

    def __call__(self, step, memory):
        index = ((step.state[..., :10] > 0).long() * self.bits).sum(dim=-1)
        exit_loops = self.table[index]
        if memory is not None:
            exit_loops = torch.where(step.loops[:, None] > 1, memory, exit_loops)
        return step.loops[:, None] >= exit_loops, exit_loops


class RowCalls:
    """Counts the calls of core layers, each as often as it has rows and tokens.

    Args:
        model (`LoopedForCausalLM`): the model.
    """

    def __init__(self, model: Any):
        self.count = 0
        self.hooks = [layer.register_forward_hook(self.add) for layer in model.model.core_layers()]

    def add(self, module: Any, args: tuple[torch.Tensor, ...], output: Any) -> None:
        """Count a call."""
        self.count += args[0].shape[0] * args[0].shape[1]


def make_model(args: argparse.Namespace) -> Any:
    """Load the model, or make one of random weights."""
    if args.model is not None:
        return load_pretrained(AutoModelForCausalLM, args.model)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": args.width, "intermediate_size": 5 * args.width // 2}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4}
    llama = LlamaConfig(vocab_size=args.vocabulary, num_hidden_layers=args.core_layers + 2, **sizes, **heads)
    config = hf_loop.LoopedConfig(backbone_config=llama, num_prelude_layers=1, num_coda_layers=1, num_loops=8)
    model = hf_loop.LoopedForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # with the weights of initialization every prompt would continue with one token
            if parameter.ndim > 1:
                parameter.mul_(2.0)
    return model


def make_prompts(args: argparse.Namespace, vocab_size: int) -> torch.Tensor:
    """Cut prompts out of a text, or draw them at random, `[N, T]`."""
    if args.prompts is None:
        return torch.randint(3, vocab_size, (args.num_prompts, args.prompt_length))
    tokenizer: Any = AutoTokenizer.from_pretrained(args.model)
    text = tokenizer(Path(args.prompts).read_text()).input_ids
    starts = torch.linspace(0, len(text) - args.prompt_length - 1, args.num_prompts).long().tolist()
    return torch.tensor([text[start : start + args.prompt_length] for start in starts])


class Ways:
    """The ways to continue the prompts, each of which returns the new tokens `[N, T]`.

    Args:
        model (`LoopedForCausalLM`): the model.
        prompts (`torch.LongTensor` of shape `[N, T]`): the prompts.
        args (`argparse.Namespace`): the options of the command line.
        rule (`dict`): the arguments of the exit rule.
    """

    def __init__(self, model: Any, prompts: torch.Tensor, args: argparse.Namespace, rule: dict[str, Any]):
        self.model, self.prompts, self.args = model, prompts, args
        self.options: dict[str, Any] = {"max_new_tokens": args.new_tokens, "do_sample": False, "pad_token_id": 0}
        self.options |= {"eos_token_id": None}
        self.exit_loops: list[int] = []
        self.named: dict[str, Callable[[], torch.Tensor]] = {
            "fixed": self.generate,
            "engine": self.batch,
            "lockstep": lambda: self.generate(**rule),
            "batched": lambda: self.batch(**rule),
            "one loop": lambda: self.generate(num_loops=1),
        }

    def generate(self, **kwargs: Any) -> torch.Tensor:
        """Continue one batch after the other."""
        batches = self.prompts.split(self.args.rows)
        masks = [torch.ones_like(batch) for batch in batches]
        parts = [
            self.model.generate(batch, attention_mask=mask, **self.options, **kwargs)
            for batch, mask in zip(batches, masks)
        ]
        return torch.cat(parts)[:, self.prompts.shape[1] :]

    def batch(self, **kwargs: Any) -> torch.Tensor:
        """Continue all by continuous depth batching."""
        sizes = {"max_batch_rows": self.args.rows, "max_sequences": self.args.max_sequences}
        sequences = self.model.generate_depth_batch(list(self.prompts), **sizes, **self.options, **kwargs)
        # those of prompts are chosen in the forward pass that reads the prompt
        self.exit_loops = [loops for sequence in sequences for loops in sequence.exit_loops[1:]]
        return torch.tensor([sequence.tokens for sequence in sequences])


def measure(model: Any, prompts: torch.Tensor, args: argparse.Namespace, rule: dict[str, Any], name: str) -> None:
    """Print the table of one rule."""
    calls, ways = RowCalls(model), Ways(model, prompts, args, rule)
    seconds: dict[str, list[float]] = {way: [] for way in ways.named}
    counts, tokens, skipped = {}, {}, 0.0
    for number in range(args.rounds + 1):
        for way in list(ways.named)[:: 1 if number % 2 else -1]:
            before, start = calls.count, time.process_time()
            tokens[way] = ways.named[way]()
            # the first round is a warm-up
            seconds[way] += [time.process_time() - start] if number else []
            counts[way] = calls.count - before
            if way == "batched":
                skipped = 1 - statistics.mean(ways.exit_loops) / model.config.num_loops
    for hook in calls.hooks:
        hook.remove()
    same = (tokens["lockstep"] == tokens["batched"]).float().mean().item()
    print(f"\n{name}: {skipped:.3f} of the loops skipped; {same:.3f} of the tokens are those of lockstep")
    print("            calls  saved/skipped    time (quartiles)         saved/skipped  throughput by lockstep")
    num_loops = model.config.num_loops
    ideals = [
        1 - skipped * num_loops / (num_loops - 1) * (fixed - one) / fixed
        for fixed, one in zip(seconds["fixed"], seconds["one loop"])
    ]
    ratios = {way: [own / fixed for own, fixed in zip(seconds[way], seconds["fixed"])] for way in ways.named}
    for way, own in {**ratios, "ideal": ideals}.items():
        low, middle, high = statistics.quantiles(own, n=4)
        calls_left = counts[way] / counts["fixed"] if way in counts else 1 - skipped
        has_rule = way in ("lockstep", "batched", "ideal") and skipped > 0
        saved = [f"{(1 - left) / skipped:.2f}" if has_rule else "" for left in (calls_left, middle)]
        gain = statistics.median(lockstep / ratio for lockstep, ratio in zip(ratios["lockstep"], own))
        spread = f"{middle:.3f} ({low:.3f} to {high:.3f})"
        print(f"{way:10} {calls_left:6.3f} {saved[0]:>14}    {spread} {saved[1]:>16} {gain:23.2f}", flush=True)


def main() -> None:
    """Print one table for every rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a looped model; by default random weights")
    parser.add_argument("--prompts", help="a text file, with a model")
    parser.add_argument("--criterion", default="state_change")
    parser.add_argument("--thresholds", type=lambda text: [float(part) for part in text.split(",")], default=[0.03])
    parser.add_argument(
        "--skips", type=lambda text: [float(part) for part in text.split(",")], default=[0.25, 0.5, 0.7]
    )
    parser.add_argument("--rows", type=int, default=16, help="rows of a call")
    parser.add_argument("--max-sequences", type=int, help="sequences in flight, by default two batches less one")
    parser.add_argument("--num-prompts", type=int, default=64)
    parser.add_argument("--prompt-length", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--core-layers", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = make_model(args)
    prompts = make_prompts(args, model.config.vocab_size)
    if args.model is None:
        num_loops = model.config.num_loops
        for skip in args.skips:
            rule = DrawnExits((1 - skip) * num_loops, num_loops)
            measure(model, prompts, args, {"exit_criterion": rule}, f"drawn exits, mean {(1 - skip) * num_loops:g}")
        return
    for threshold in args.thresholds:
        exits = {"exit_criterion": args.criterion, "exit_threshold": threshold}
        measure(model, prompts, args, exits, f"{args.criterion} {threshold:g}")


if __name__ == "__main__":
    main()
