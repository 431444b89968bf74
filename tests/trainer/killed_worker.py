"""One of two processes that train puzzles and write down the losses. The second may be killed while it saves."""

import json
import os
import signal
import sys
from pathlib import Path

from hf_loop.trainer.persistent_rows import PersistentRows
from tests.process_group import leave_process_group
from tests.trainer.tiny_puzzles import logged, puzzle_trainer


def kill_the_second_at(step: int) -> None:
    save = PersistentRows.save

    def dying(self, folder: Path, rank: int) -> None:
        save(self, folder, rank)
        if rank == 1 and folder.name == f"checkpoint-{step}":
            os.kill(os.getpid(), signal.SIGKILL)

    PersistentRows.save = dying


def main() -> None:
    folder, how = Path(sys.argv[1]), sys.argv[2]
    fields = {"per_device_train_batch_size": 4, "exploration": 0.5, "ema_decay": 0.9, "save_strategy": "steps"}
    trainer = puzzle_trainer(folder, save_steps=3, save_total_limit=2, **fields)
    if how == "killed":
        kill_the_second_at(6)
    try:
        trainer.train(resume_from_checkpoint=how == "resumed")
        result = logged(trainer)
    except ValueError as error:
        result = str(error)
    (folder.parent / f"{how}_{trainer.args.process_index}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
    leave_process_group()
