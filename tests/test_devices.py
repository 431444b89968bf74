"""Devices without float64, such as Apple's: whatever computes in it does so in the main memory there."""

import re
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode

import hf_loop
from hf_loop.models import puzzle_loss as losses


PACKAGE = Path(hf_loop.__file__).parent
# lines with float64 that no tensor of a device meets, and why
ALLOWED = {
    "tensor.double() if has_float64(tensor.device.type) else tensor.cpu().double()": "asks the device",
    "torch.ones(1, dtype=torch.float64, device=device_type)": "is how it is asked",
    "expected.dtype in (torch.float32, torch.float64)": "compares names",
    "dtypes = (torch.float16, torch.bfloat16, torch.float32, torch.float64)": "compares names",
    "torch.linspace(0, len(values) - 1, min(NUM_SAMPLES, len(values)), dtype=torch.float64)": "is made on the CPU",
}


def test_float64_is_used_in_the_main_memory_only():
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            uses = re.search(r"\.double\(\)|torch\.(float64|double)\b", line)
            if uses and ".cpu().double()" not in line and not any(allowed in line for allowed in ALLOWED):
                found.append(f"{path.relative_to(PACKAGE)}:{number}: {line.strip()}")
    assert found == []


class WithoutFloat64(TorchFunctionMode):
    """Stands for a device without float64: a tensor must be brought to the CPU before it becomes one."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.double and not getattr(args[0], "is_in_main_memory", False):
            raise TypeError("Cannot convert a tensor to float64: the device has none")
        result = func(*args, **(kwargs or {}))
        if func is torch.Tensor.cpu:
            result = result.clone()
            result.is_in_main_memory = True
        return result


@pytest.mark.parametrize("kind", ["softmax", "stablemax"])
def test_the_puzzle_loss_is_the_same_there(kind, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(3, 7, 5, generator=generator)
    labels = torch.randint(5, (3, 7), generator=generator).masked_fill(torch.eye(3, 7, dtype=torch.bool), -100)

    def loss_and_gradient():
        leaf = logits.clone().requires_grad_()
        loss = losses.puzzle_loss(leaf, labels, kind, halt_logits=logits[:, 0, :1])
        loss.backward()
        return loss.detach(), leaf.grad

    expected = loss_and_gradient()
    monkeypatch.setattr(losses, "has_float64", lambda device_type: False)
    with WithoutFloat64():
        found = loss_and_gradient()
    torch.testing.assert_close(found, expected)


def test_devices_are_asked_once_whether_they_have_float64():
    assert losses.has_float64("cpu")
    # one that is not there has none either
    assert not losses.has_float64("mps") or torch.backends.mps.is_available()
