"""Trains a looped model on the coin game, pushes it to the Hub, and loads it from there at another depth.

After `hf auth login`, with a repository of yours (a minute and a half of one CPU core):
    python training/train_push_reload.py ME/coin-game

Without the Hub it stays in a folder, in which training/look_inside.py looks at it:
    python training/train_push_reload.py

The game: "heads flip keep flip" is answered by "heads". One layer runs 4 to 8 times, drawn anew at every step, because
a model that is trained at one depth is worse at others.
"""

import argparse
from typing import Any

from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq, LlamaConfig, set_seed

from hf_loop import LoopedConfig, LoopedForCausalLM, LoopTrainer, LoopTrainingArguments
from hf_loop.evaluation import Results, accuracy_over_loops
from hf_loop.loading import load_pretrained
from hf_loop.tasks import coin_flips
from hf_loop.tokenizing import load_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", nargs="?", help="where to push it, as ME/NAME")
    parser.add_argument("--output-dir", default="outputs/coin_game")
    parser.add_argument("--steps", type=int, default=1200)
    args = parser.parse_args()
    set_seed(0)
    games, tokenizer = coin_flips(64 * args.steps, 250, num_moves=10, curriculum=0.25)
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    llama = LlamaConfig(vocab_size=len(tokenizer), num_attention_heads=4, pad_token_id=tokenizer.pad_token_id, **sizes)
    model: Any = LoopedForCausalLM(LoopedConfig(backbone_config=llama, num_loops=6))

    settings = LoopTrainingArguments(
        output_dir=args.output_dir,
        loop_sampling="uniform",
        min_loops=4,
        max_loops=8,
        per_device_train_batch_size=64,
        num_train_epochs=1,
        # the games come with the short ones first
        train_sampling_strategy="sequential",
        learning_rate=3e-3,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": args.steps // 3},
        warmup_steps=args.steps // 30,
        save_strategy="no",
        logging_strategy="no",
    )
    collator = DataCollatorForSeq2Seq(tokenizer)
    LoopTrainer(model=model, args=settings, train_dataset=games["train"], data_collator=collator).train()

    curve = accuracy_over_loops(model, games["test"], [1, 2, 4, 6, 8, 12])
    right = [f"{num_loops}: {value:.0%}" for num_loops, value in zip(curve.num_loops, curve.values)]
    print("right answers by loops  ", "  ".join(right))
    # what the model card shows
    command = f"python training/train_push_reload.py --steps {args.steps}"
    Results(curves=[curve], command=command, loop_sampling="uniform from 4 to 8").save(args.output_dir)
    model.save_pretrained(args.output_dir)
    tokenizer.save_pretrained(args.output_dir)
    if args.repository is not None:
        # from the folder, so that what was measured there comes along into the card
        load_pretrained(AutoModelForCausalLM, args.output_dir).push_to_hub(args.repository)
        tokenizer.push_to_hub(args.repository)

    source = args.repository or args.output_dir
    reloaded: Any = load_pretrained(AutoModelForCausalLM, source, num_loops=12)
    inputs = load_tokenizer(source)("heads flip keep flip flip keep", return_tensors="pt")
    answer = reloaded.generate(**inputs, max_new_tokens=1, do_sample=False)
    print(f"{source} with {reloaded.config.num_loops} loops: {tokenizer.decode(answer[0])!r}")


if __name__ == "__main__":
    main()
