"""The loss that pulls a student's next-token distribution towards a teacher's."""

from typing import Any

import torch
from torch.nn.functional import log_softmax

from ..models.puzzle_loss import IGNORE_INDEX


# logits of so many tokens are in float32 at once
TOKENS_PER_CHUNK = 256


def distillation_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    labels: torch.Tensor,
    temperature: float,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """`T^2 KL(teacher_T || student_T)`, where `p_T` is the softmax of logits divided by the temperature T.

    The square keeps the size of the gradient when T changes (Hinton et al., arXiv 1503.02531). Which tokens count and
    how they are averaged follows transformers' loss of causal language models: position t predicts the label at t + 1,
    -100 is not scored, and the sum is divided by `num_items_in_batch`, or by the scored tokens of this batch.

    Float32 copies exist of a chunk of tokens at a time. The gradient is worked out together with the loss, so that
    beside the logits themselves one tensor of the student's shape and type is kept for the backward pass.

    Args:
        student_logits (`torch.Tensor` of shape `[B, T, V]`): the gradient flows here.
        teacher_logits (`torch.Tensor` of shape `[B, T, V]`): in any floating type.
        labels (`torch.LongTensor` of shape `[B, T]`): not shifted.
        temperature (`float`): T, positive.
        num_items_in_batch (`torch.Tensor` or `int`, *optional*): scored tokens of the whole optimizer step.

    Returns:
        `torch.Tensor`: a scalar in float32.

    Raises:
        ValueError: if the two logits have different shapes.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"the teacher's logits must have the student's shape {list(student_logits.shape)}, "
            f"got {list(teacher_logits.shape)}"
        )
    scored = torch.zeros_like(labels, dtype=torch.bool)
    scored[:, :-1] = labels[:, 1:] != IGNORE_INDEX
    rows = scored.flatten().nonzero().squeeze(1)
    total = _Divergence.apply(student_logits.flatten(0, 1), teacher_logits.flatten(0, 1), rows, temperature)
    count = rows.numel() if num_items_in_batch is None else num_items_in_batch
    if torch.is_tensor(count):
        count = count.to(total.device)
    return temperature**2 * total / count


class _Divergence(torch.autograd.Function):
    """The sum of `KL(teacher_T || student_T)` over rows of logits `[N, V]`.

    The gradient with respect to the student's logits is `(student_T - teacher_T) / T`.
    """

    @staticmethod
    def forward(
        ctx: Any, student: torch.Tensor, teacher: torch.Tensor, rows: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        total = torch.zeros((), device=student.device)
        gradient = torch.zeros_like(student) if ctx.needs_input_grad[0] else None
        for chunk in rows.split(TOKENS_PER_CHUNK):
            student_log = log_softmax(student[chunk].float() / temperature, dim=-1)
            teacher_log = log_softmax(teacher[chunk].float() / temperature, dim=-1)
            teacher_probability = teacher_log.exp()
            total += (teacher_probability * (teacher_log - student_log)).sum()
            if gradient is not None:
                gradient[chunk] = ((student_log.exp() - teacher_probability) / temperature).to(gradient.dtype)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_output.to(gradient.dtype), None, None, None
