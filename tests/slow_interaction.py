"""Gated bridge attention written down from equations (6) to (9): one head and row at a time."""

import math

import torch
import torch.nn.functional as F


def softmax_mix(query, keys, values):
    weights = [math.exp(float(query @ key) / math.sqrt(len(query))) for key in keys]
    return sum(w / sum(weights) * v for w, v in zip(weights, values, strict=True))


def interaction(stack, config, x, kv):
    """SGFI(x, kv) of one utterance without padding: ``x [L, D]``, ``kv [S, D]``."""
    d = x.shape[1] // config.heads
    for layer in stack.layers:
        q, pairs = x @ layer.query.weight.T, kv @ layer.key_value.weight.T
        keys, values = pairs.chunk(2, dim=1)
        heads = []
        for h in range(config.heads):
            part = slice(h * d, (h + 1) * d)
            k, v = (keys, values) if config.multi_query else (keys[:, part], values[:, part])
            q_h = q[:, part]
            if config.bridge_tokens:
                bridge = F.adaptive_avg_pool1d(q_h.T[None], config.bridge_tokens)[0].T  # (7)
                gathered = [softmax_mix(b, k, v) for b in bridge]
                heads.append(torch.stack([softmax_mix(row, bridge, gathered) for row in q_h]))
            else:
                heads.append(torch.stack([softmax_mix(row, k, v) for row in q_h]))
        o = torch.cat(heads, dim=1) @ layer.out.weight.T
        if config.gate == "query":
            o = torch.relu(layer.gate(layer.norm_gate(x))) * o
        elif config.gate == "output":
            o = torch.relu(o @ layer.gate.weight.T)
        x = x + o
        x = x + layer.ffn(layer.norm_ffn(x))
    return x
