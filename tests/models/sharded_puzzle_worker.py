"""A puzzle model spread over two processes by transformers' FSDP plan, held to the whole one.

python -m torch.distributed.run --standalone --nproc_per_node 2 tests/models/sharded_puzzle_worker.py FOLDER
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import AutoModelForMaskedLM
from transformers.distributed import DistributedConfig

from tests.models.puzzle_variants import puzzles
from tests.process_group import leave_process_group


def main() -> None:
    dist.init_process_group("gloo")
    inputs, labels = puzzles(4), puzzles(4, seed=1)
    for folder in sorted(Path(sys.argv[1]).iterdir()):
        whole = AutoModelForMaskedLM.from_pretrained(folder).train()
        model = AutoModelForMaskedLM.from_pretrained(folder, distributed_config=DistributedConfig(fsdp_size=2)).train()
        sharded = [parameter for parameter in model.parameters() if hasattr(parameter, "full_tensor")]
        assert len(sharded) == len(list(model.parameters())), folder.name
        carry, expected_carry = None, None
        for _ in range(2):
            outputs = model(inputs, labels=labels, carry=carry)
            expected = whole(inputs, labels=labels, carry=expected_carry)
            carry, expected_carry = outputs.carry, expected.carry
            torch.testing.assert_close(outputs.logits, expected.logits, rtol=1e-5, atol=1e-6)
        outputs.loss.backward()
        expected.loss.backward()
        for (name, parameter), other in zip(model.named_parameters(), whole.parameters(), strict=True):
            assert (parameter.grad is None) == (other.grad is None), name
            if other.grad is not None:
                torch.testing.assert_close(parameter.grad.full_tensor(), other.grad, rtol=1e-4, atol=1e-6, msg=name)


if __name__ == "__main__":
    main()
    leave_process_group()
