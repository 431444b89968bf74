"""Run by `torchrun` from test_distributed.py: gradients of a looped model under torch's FSDP2, on two gloo processes.

Each process takes half of the batch; the gradients must be those of one process with the whole batch.
"""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.process_group import leave_process_group
from tests.trainer.tiny import tiny_dataset, tiny_model


def main() -> None:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    input_ids = torch.stack(list(tiny_dataset(num_rows=8)["input_ids"]))
    rows = slice(4 * dist.get_rank(), 4 * dist.get_rank() + 4)
    for depth in ({"num_loops": 1}, {"num_loops": 5, "num_backprop_loops": 2}, {"num_loops": 3}):
        for reshard_after_forward in (True, False):
            for checkpointing in (True, False):
                whole = tiny_model(injection="add", loop_lora_rank=2, loop_lora_vectors=True).train()
                whole(input_ids, labels=input_ids, **depth).loss.backward()
                model = tiny_model(injection="add", loop_lora_rank=2, loop_lora_vectors=True).train()
                if checkpointing:
                    model.activation_checkpointing_enable()
                for layer in model.model.backbone.layers:
                    fully_shard(layer, mesh=mesh, reshard_after_forward=reshard_after_forward)
                fully_shard(model, mesh=mesh, reshard_after_forward=reshard_after_forward)
                model(input_ids[rows], labels=input_ids[rows], **depth).loss.backward()
                for parameter, expected in zip(model.parameters(), whole.parameters(), strict=True):
                    torch.testing.assert_close(parameter.grad.full_tensor(), expected.grad, rtol=1e-4, atol=1e-6)


if __name__ == "__main__":
    main()
    leave_process_group()
