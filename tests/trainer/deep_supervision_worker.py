"""One of two processes that train under deep supervision; the first writes down what came of it."""

import json
import sys
from pathlib import Path

from tests.process_group import leave_process_group
from tests.trainer.tiny_puzzles import logged, train


def main() -> None:
    folder = Path(sys.argv[1])
    # of every eight rows in order, a process gets four
    trainer = train(
        folder, per_device_train_batch_size=4, exploration=0.5, save_strategy="steps", save_steps=6, ema_decay=0.9
    )
    resumed = train(
        folder, resume=str(folder / "checkpoint-6"), per_device_train_batch_size=4, exploration=0.5, ema_decay=0.9
    )
    metrics = resumed.evaluate()
    if trainer.is_world_process_zero():
        result = {"losses": logged(trainer), "resumed": logged(resumed), "metrics": metrics}
        (folder / "result.json").write_text(json.dumps(result))
        trainer.save_model(str(folder / "model"))


if __name__ == "__main__":
    main()
    leave_process_group()
