# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Fast-weight rules: how a token is written to a matrix memory, and how the memory is read.

Shapes: B sequences, T tokens, H heads, K key channels, V value channels, C tokens of a chunk.

    q, k [B, T, H, K]   v [B, T, H, V]   b, g [B, T, H]   S [B, H, K, V]   o [B, T, H, V]

Each token decays the memory, `S <- exp(g) S` with `g <= 0`, writes with strength `b`, and then reads
`o = S^T q / sqrt(K)`:

    hebbian       S += b k v^T
    delta         S += b k (v - S^T k)^T        without decay
    gated_delta   S += b k (v - S^T k)^T
    oja           S += b (k - S v) v^T          without decay

The delta rule replaces the value that the memory holds for a key; Oja's rule is its dual, which replaces the key that
it holds for a value (both as in https://github.com/fla-org/flash-linear-attention). Keys of the delta rule and values
of Oja's rule should have length one.

`recurrent_fast_weights` runs token by token, `chunked_fast_weights` a chunk of tokens at once, with the same result.
The tokens of a chunk write `Kw Vw^T` where, with `G = cumsum(g)` and `D_ij = exp(G_i - G_j)` for `i >= j`,

    hebbian      Kw = b K                              Vw = V
    delta        Kw = K                                Vw = (I + A)^-1 (b V - b exp(G) K S)     A_ij = b_i D_ij k_i.k_j
    oja          Kw = (I + A)^-1 (b K - b exp(G) V S^T)     Vw = V                              A_ij = b_i D_ij v_i.v_j
    O = exp(G) Q S + (Q Kw^T . D) Vw;   S <- exp(G_C) S + (exp(G_C - G) Kw)^T Vw

with `A` strictly lower triangular: the chunk form of the gated delta rule, https://huggingface.co/papers/2412.06464.
"""

import importlib
import importlib.util
from collections.abc import Callable

import torch


FAST_WEIGHT_RULES = ("hebbian", "delta", "gated_delta", "oja")
# rules with a decay; the other two forget by overwriting
DECAYING_RULES = ("hebbian", "gated_delta")
CHUNK_SIZE = 64

# flash-linear-attention has no chunked kernel of Oja's rule with one strength per head
_KERNELS = {
    "hebbian": ("fla.ops.simple_gla", "chunk_simple_gla"),
    "delta": ("fla.ops.delta_rule", "chunk_delta_rule"),
    "gated_delta": ("fla.ops.gated_delta_rule", "chunk_gated_delta_rule"),
}


def fast_weights(
    rule: str,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    b: torch.Tensor,
    g: torch.Tensor | None = None,
    state: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Write tokens to a fast-weight memory and read from it, in the form that is fastest on the tensors' device.

    Args:
        rule (`str`): one of `FAST_WEIGHT_RULES`.
        q, k (`torch.Tensor` of shape `[B, T, H, K]`): queries and keys.
        v (`torch.Tensor` of shape `[B, T, H, V]`): values.
        b (`torch.Tensor` of shape `[B, T, H]`): strength of each write.
        g (`torch.Tensor` of shape `[B, T, H]`, *optional*): logarithm of the decay before each write, at most 0.
        state (`torch.Tensor` of shape `[B, H, K, V]`, *optional*): the memory before the first token, zero if `None`.
        mask (`torch.Tensor` of shape `[B, T]`, *optional*): 0 at tokens that do not change the memory.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: the reads of all tokens `[B, T, H, V]` in the dtype of `v`, and the memory
        after the last token `[B, H, K, V]` in float32.

    Raises:
        ValueError: if `rule` is unknown, or `g` is given for a rule without decay.
    """
    check_rule(rule, g)
    b, g = _mask_tokens(b, g, mask)
    kernel = _find_kernel(rule) if q.is_cuda and q.dtype != torch.float32 and q.shape[1] > 1 else None
    if kernel is not None:
        return _run_kernel(kernel, rule, q, k, v, b, g, state)
    if q.shape[1] == 1:
        return recurrent_fast_weights(rule, q, k, v, b, g, state)
    return chunked_fast_weights(rule, q, k, v, b, g, state)


def check_rule(rule: str, g: torch.Tensor | None) -> None:
    """Raise `ValueError` if `rule` is unknown, or `g` is given for a rule without decay."""
    if rule not in FAST_WEIGHT_RULES:
        raise ValueError(f"`rule` must be one of {', '.join(FAST_WEIGHT_RULES)}, got {rule!r}")
    if g is not None and rule not in DECAYING_RULES:
        raise ValueError(f"`g` must be None for the rule {rule!r}, which has no decay")


def recurrent_fast_weights(
    rule: str,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    b: torch.Tensor,
    g: torch.Tensor | None = None,
    state: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute `fast_weights` token by token: the definition of the rules, also used for single tokens."""
    check_rule(rule, g)
    b, g = _mask_tokens(b, g, mask)
    dtype = v.dtype
    Q, K, V, B, G, S = _to_heads(q, k, v, b, g, state)
    reads = []
    for token in range(Q.shape[2]):
        key, value, strength = K[:, :, token], V[:, :, token], B[:, :, token, None]
        S = S * G[:, :, token, None, None].exp()
        if rule == "hebbian":
            key = strength * key
        elif rule == "oja":
            key = strength * (key - torch.einsum("bhkv,bhv->bhk", S, value))
        else:
            value = strength * (value - torch.einsum("bhkv,bhk->bhv", S, key))
        S = S + key[..., :, None] * value[..., None, :]
        reads.append(torch.einsum("bhkv,bhk->bhv", S, Q[:, :, token]))
    return torch.stack(reads, dim=1).to(dtype), S


def chunked_fast_weights(
    rule: str,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    b: torch.Tensor,
    g: torch.Tensor | None = None,
    state: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute `fast_weights` in chunks of `chunk_size` tokens."""
    check_rule(rule, g)
    b, g = _mask_tokens(b, g, mask)
    dtype = v.dtype
    Q, K, V, B, G, S = _to_heads(q, k, v, b, g, state)
    reads = []
    for pieces in zip(*(tensor.split(chunk_size, dim=2) for tensor in (Q, K, V, B, G))):
        read, S = _chunk_step(rule, *pieces, S)
        reads.append(read)
    return torch.cat(reads, dim=2).transpose(1, 2).to(dtype), S


def _chunk_step(
    rule: str,
    Q: torch.Tensor,
    K: torch.Tensor,
    V: torch.Tensor,
    B: torch.Tensor,
    G: torch.Tensor,
    S: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run one chunk: `Q` and `K` `[B, H, C, K]`, `V` `[B, H, C, V]`, `B` and `G` `[B, H, C]`."""
    G = G.cumsum(-1)
    # masked before exp: above the diagonal the difference is positive and may overflow
    is_future = torch.ones(Q.shape[2], Q.shape[2], dtype=torch.bool, device=Q.device).triu(1)
    D = (G[..., :, None] - G[..., None, :]).masked_fill(is_future, float("-inf")).exp()
    decay, B = G.exp()[..., None], B[..., None]
    if rule == "hebbian":
        K = B * K
    elif rule == "oja":
        K = torch.linalg.solve_triangular(
            B * (V @ V.mT) * D, B * (K - decay * (V @ S.mT)), upper=False, unitriangular=True
        )
    else:
        V = torch.linalg.solve_triangular(
            B * (K @ K.mT) * D, B * (V - decay * (K @ S)), upper=False, unitriangular=True
        )
    read = decay * (Q @ S) + ((Q @ K.mT) * D) @ V
    left = (G[..., -1:] - G).exp()[..., None]
    return read, decay[:, :, -1:] * S + (left * K).mT @ V


def _mask_tokens(
    b: torch.Tensor, g: torch.Tensor | None, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    # strength 0 and decay exp(0) = 1 do not change the memory
    if mask is None:
        return b, g
    is_masked = (mask == 0)[..., None]
    return b.masked_fill(is_masked, 0.0), None if g is None else g.masked_fill(is_masked, 0.0)


def _to_heads(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    b: torch.Tensor,
    g: torch.Tensor | None,
    state: torch.Tensor | None,
) -> tuple[torch.Tensor, ...]:
    """Convert to float32, move heads before tokens, scale the queries, and fill in a missing `g` and `state`."""
    g = torch.zeros_like(b) if g is None else g
    Q, K, V, B, G = (tensor.transpose(1, 2).float() for tensor in (q, k, v, b, g))
    if state is None:
        state = Q.new_zeros(Q.shape[0], Q.shape[1], K.shape[-1], V.shape[-1])
    return Q * Q.shape[-1] ** -0.5, K, V, B, G, state.float()


def _find_kernel(rule: str) -> Callable | None:
    # imported by name, so that code that comes with a checkpoint does not require the package
    if rule not in _KERNELS or importlib.util.find_spec("fla") is None:
        return None
    module, name = _KERNELS[rule]
    return getattr(importlib.import_module(module), name)


def _run_kernel(
    kernel: Callable,
    rule: str,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    b: torch.Tensor,
    g: torch.Tensor | None,
    state: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run a kernel of flash-linear-attention, which takes `[B, T, H, D]`, scales queries and has float32 states."""
    options = {"initial_state": state, "output_final_state": True}
    if rule == "hebbian":
        # this kernel has no argument for the strength
        return kernel(q, k * b[..., None].to(k.dtype), v, g=g, **options)
    if rule == "delta":
        return kernel(q, k, v, beta=b.to(v.dtype), **options)
    return kernel(q, k, v, g=g, beta=b, **options)


def l2_normalize(tensor: torch.Tensor) -> torch.Tensor:
    """Scale vectors along the last dimension to length one, with a finite gradient at zero."""
    norm = torch.rsqrt(tensor.float().square().sum(-1, keepdim=True) + 1e-6)
    return (tensor.float() * norm).to(tensor.dtype)


__all__ = [
    "DECAYING_RULES",
    "FAST_WEIGHT_RULES",
    "check_rule",
    "chunked_fast_weights",
    "fast_weights",
    "l2_normalize",
    "recurrent_fast_weights",
]
