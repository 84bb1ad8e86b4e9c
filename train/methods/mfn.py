"""MFN: the Memory Fusion Network.

Zadeh, Liang, Mazumder, Poria, Cambria and Morency, "Memory Fusion Network for Multi-view Sequential
Learning" (AAAI 2018). Letters: B batch, K steps, H sum of the LSTMs' widths, U width of the
multi-view memory, D model width.

    h_m[k], c_m[k] = LSTM_m(x_m[k])          a system of LSTMs, one per modality
    c^[k-1,k] = [c_t, c_a, c_v][k-1], [c_t, c_a, c_v][k]                         [B, 2 H]
    c~ = c^[k-1,k] * softmax(D_a(c^[k-1,k]))            delta-memory attention
    u[k] = s(D_g1(c~)) * u[k-1] + s(D_g2(c~)) * tanh(D_u(c~))   multi-view gated memory
    F_M = W [h_t, h_a, h_v, u][K],   y = MLP(F_M)

D_* are networks of one hidden layer, s is the logistic function. The paper samples all
widths; the defaults are within its ranges.

The adapter: modalities must share one time axis, so each is resampled to K steps of equal length
(`train.model.frames.pool_to_length`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from train.config import Config, read_options
from train.data import Batch
from train.method import Method, Outputs
from train.model.frames import Frames, pool_to_length
from train.model.layers import predictor
from train.model.text_features import text_source
from train.ranges import Positive
from train.task import Task


class MFN(Method):
    """LSTMs, attention over their memories, and a multi-view gated memory."""

    @dataclass
    class Options:
        """MFN's own keys."""

        steps: Positive[int] = 20  # K
        text: Positive[int] = 128  # widths of the LSTMs
        audio: Positive[int] = 32
        vision: Positive[int] = 32
        memory: Positive[int] = 128  # U
        hidden: Positive[int] = 128  # of the networks D_*

    def __init__(self, config: Config, task: Task, widths: Mapping[str, int]) -> None:
        super().__init__(config, task, widths)
        self.options = options = read_options(self.Options, config)
        self.text = text_source(config.text, widths)
        self.audio = Frames(widths["audio"], config)
        self.vision = Frames(widths["vision"], config)
        self.lstms = nn.ModuleList(
            nn.LSTMCell(width, hidden)
            for width, hidden in (
                (self.text.width, options.text),
                (widths["audio"], options.audio),
                (widths["vision"], options.vision),
            )
        )
        states = options.text + options.audio + options.vision
        self.memory = GatedMemory(states, options.memory, options.hidden, config.dropout)
        self.fuse = nn.Linear(states + options.memory, config.width)
        self.predict = predictor(config.width, task.outputs, config.dropout)

    def forward(self, batch: Batch) -> Outputs:
        """Predict from the last states and the last memory."""
        read = self.text(batch.text), self.audio(batch.audio), self.vision(batch.vision)
        x = [pool_to_length(x_BTd, mask_BT, self.options.steps) for x_BTd, mask_BT in read]
        state: list[tuple[Tensor, Tensor] | None] = [None] * len(x)
        before_BH = x[0].new_zeros(len(batch), self.memory.states)
        u_BU = x[0].new_zeros(len(batch), self.options.memory)
        for k in range(self.options.steps):
            state = [
                lstm(x_BKd[:, k], last)
                for lstm, x_BKd, last in zip(self.lstms, x, state, strict=True)
            ]
            now_BH = torch.cat([each[1] for each in state if each], 1)
            u_BU = self.memory(before_BH, now_BH, u_BU)
            before_BH = now_BH
        fused_BD = self.fuse(torch.cat([*(each[0] for each in state if each), u_BU], 1))
        return Outputs({"M": self.predict(fused_BD)}, {"M": fused_BD})


class GatedMemory(nn.Module):
    """Delta-memory attention and the multi-view gated memory.

    Args:
        states: H.
        memory: U.
        hidden: width of the hidden layer of each network D.
        dropout: within those networks.
    """

    def __init__(self, states: int, memory: int, hidden: int, dropout: float) -> None:
        super().__init__()

        def network(outputs: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Linear(2 * states, hidden),
                nn.ReLU(),
                nn.Dropout(dropout),
                nn.Linear(hidden, outputs),
            )

        self.states = states
        self.attention, self.update = network(2 * states), network(memory)
        self.retain, self.write = network(memory), network(memory)  # gates 1 and 2

    def forward(self, before_BH: Tensor, now_BH: Tensor, u_BU: Tensor) -> Tensor:
        """Compute u[k] from the LSTMs' memories of two consecutive steps and u[k-1], ``[B, U]``."""
        c_B2H = self.attend(before_BH, now_BH)
        proposed_BU = self.update(c_B2H).tanh()
        return self.retain(c_B2H).sigmoid() * u_BU + self.write(c_B2H).sigmoid() * proposed_BU

    def attend(self, before_BH: Tensor, now_BH: Tensor) -> Tensor:
        """Compute c~, ``[B, 2 H]``: the weights of both steps sum to one."""
        c_B2H = torch.cat([before_BH, now_BH], 1)
        return c_B2H * self.attention(c_B2H).softmax(1)
