"""Looks inside the loops of the model that training/train_push_reload.py makes: a lens, the dynamics, the controls.

    python training/train_push_reload.py && python training/look_inside.py
    python training/look_inside.py MODEL "tails keep flip flip"

answer    of one prompt: the likeliest next token, had the model stopped after this loop
step      how far the loop moves the state, against its length
without   how probable the last answer is if this loop alone is left out
loss      of 125 games: had the model stopped after this loop
fitted    the same with a head fitted to such states: what is left is missing computation, the rest only the head's

`hf-loop inspect` and `hf-loop sweep --controls` do the same for any model, with figures.
"""

import argparse
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from hf_loop.analysis import capture, loop_answers, loop_dynamics, run_patched, skip
from hf_loop.evaluation import depth_controls
from hf_loop.evaluation.readout_batches import split_rows
from hf_loop.loading import load_pretrained
from hf_loop.tasks import coin_flips
from hf_loop.tokenizing import load_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="outputs/coin_game")
    parser.add_argument("prompt", nargs="?", default="heads flip keep flip flip keep flip keep keep flip flip")
    args = parser.parse_args()
    model: Any = load_pretrained(AutoModelForCausalLM, args.model)
    tokenizer = load_tokenizer(args.model)
    games, own_tokenizer = coin_flips(1, 250, num_moves=10)
    if tokenizer.get_vocab() != own_tokenizer.get_vocab():
        parser.error(f"{args.model} has another tokenizer than the coin game")
    num_loops = model.config.num_loops

    input_ids = tokenizer(args.prompt, return_tensors="pt").input_ids
    tokens, probabilities = (table[:, 0, -1, 0] for table in loop_answers(model, input_ids).top())
    steps = loop_dynamics(capture(model, input_ids)).step_norm[:, 0, -1]
    print(f"{args.prompt}: {tokenizer.decode(tokens[-1])}")
    controls = depth_controls(model, *split_rows(games["test"], 64), list(range(1, num_loops + 1)))
    print("loop  answer       step  without  loss  fitted")
    for loop, row in enumerate(controls.rows):
        answer = f"{tokenizer.decode(tokens[loop])} {float(probabilities[loop]):.0%}"
        without = float(run_patched(model, input_ids, [skip(loop)])[0, -1].softmax(-1)[tokens[-1]])
        step = float(steps[loop])
        print(f"{row.loops:4}  {answer:11}  {step:4.2f}  {without:7.0%}  {row.prefix:4.2f}  {row.affine:6.2f}")


if __name__ == "__main__":
    with torch.no_grad():
        main()
