r"""Prints how well the exit gate of a looped model foresees, after every loop, that the next one gains nothing.

    python training/recipes/looped/gate_calibration.py outputs/python_source_gate \
        outputs/python_source_text/held_out.txt

Give several models, the text last, for one table over all of them.
"""

import argparse
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_loop.evaluation import gate_calibration
from hf_loop.loading import load_pretrained


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help="folders of models with an exit gate")
    parser.add_argument("text", type=Path, help="a text file that the models have not learned")
    parser.add_argument("--max-tokens", type=int, default=8192)
    parser.add_argument("--gain-threshold", type=float, default=0.005, help="the gain, in nats, that is worth a loop")
    args = parser.parse_args()
    print("| model | loop | predicted | measured | calibration error | ranking |\n|---|---|---|---|---|---|")
    for folder in args.models:
        model: Any = load_pretrained(AutoModelForCausalLM, folder)
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        text = args.text.read_text(encoding="utf-8")[: 16 * args.max_tokens]
        input_ids = tokenizer(text, return_tensors="pt").input_ids[:, : args.max_tokens]
        for row in gate_calibration(model, input_ids, gain_threshold=args.gain_threshold):
            numbers = (row.predicted, row.measured, row.error, row.ranking)
            print(f"| {folder.name} | {row.loop} | {' | '.join(f'{number:.3f}' for number in numbers)} |")


if __name__ == "__main__":
    main()
