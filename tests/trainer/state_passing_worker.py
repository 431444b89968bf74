"""One of two processes that train with random state passing; the first writes the losses down."""

import json
import sys
from pathlib import Path

from tests.process_group import leave_process_group
from tests.trainer.test_state_passing import losses, train


def main() -> None:
    folder = Path(sys.argv[1])
    # of every eight rows in order, a process gets four
    trainer = train(folder, per_device_train_batch_size=4)
    if trainer.is_world_process_zero():
        folder.mkdir(exist_ok=True)
        (folder / "losses.json").write_text(json.dumps(losses(trainer)))


if __name__ == "__main__":
    main()
    leave_process_group()
