"""Trains the model of a recipe. The same as `hf-loop train`, as a script that `accelerate launch` can start.

On one device (a GPU where there is one):
    python training/train.py training/recipes/looped/shell_game.yaml

On the CPU, in seconds, to see that everything works:
    python training/train.py training/recipes/looped/text_pretraining.yaml --debug

With other values, and after an interruption:
    python training/train.py training/recipes/looped/text_pretraining.yaml --set training.learning_rate=3e-4
    python training/train.py training/recipes/looped/text_pretraining.yaml --set training.learning_rate=3e-4 --resume

On four GPUs:
    accelerate launch --config_file training/accelerate/ddp.yaml --num_processes 4 training/train.py RECIPE

What it does is in hf_loop/trainer/run.py; what a recipe may say is in training/recipes/README.md.
"""

import typer

from hf_loop.cli.errors import one_line_errors
from hf_loop.cli.train import train


if __name__ == "__main__":
    with one_line_errors():
        typer.run(train)
