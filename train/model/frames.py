"""Frames as the methods without a perceiver take them: padded, aligned, or as one vector.

Letters: B batch, T frames, L target positions, K steps, d width of a frame, H width of a state.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from cache import Packed
from train.config import Config


class Frames(nn.Module):
    """The cached frames of one modality, normalised; an absent one is a single learnt frame.

    Layer normalisation stands for what the papers' own pipelines do to their features over the
    whole data set or by batch normalisation: it needs no statistics, and a batch may be a single
    utterance.

    Args:
        width: columns of the cached features, d.
        config: ``perceiver.frames`` and ``perceiver.max_frames`` choose among the frames, as they
            do for the perceiver.
    """

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.frames, self.max_frames = config.perceiver.frames, config.perceiver.max_frames
        self.norm = nn.LayerNorm(width)
        self.missing = nn.Parameter(0.02 * torch.randn(width))

    def forward(self, frames: Packed) -> tuple[Tensor, Tensor]:
        """``x [B, T, d]`` and ``mask [B, T]``, True on real frames, at least one a row."""
        frames = (
            resample(frames, self.frames) if self.frames else subsample(frames, self.max_frames)
        )
        x_BTd, mask_BT = frames.padded()
        absent_B1 = ~mask_BT.any(1, keepdim=True)
        first_BT = torch.arange(mask_BT.shape[1], device=mask_BT.device) == 0
        filled_BT = absent_B1 & first_BT
        x_BTd = self.norm(x_BTd.to(self.missing.dtype))
        return torch.where(filled_BT[..., None], self.missing, x_BTd), mask_BT | filled_BT


class LastState(nn.Module):
    """The last states of an LSTM over the real positions: all layers and directions side by side.

    Args:
        width: d.
        hidden: H, of one layer and direction.
        layers: how many stand one on another.
        bidirectional: whether each also reads from the end.
    """

    def __init__(
        self, width: int, hidden: int, layers: int = 1, bidirectional: bool = False
    ) -> None:
        super().__init__()
        self.width = hidden * layers * (2 if bidirectional else 1)
        self.lstm = nn.LSTM(width, hidden, layers, batch_first=True, bidirectional=bidirectional)

    def forward(self, x_BTd: Tensor, mask_BT: Tensor) -> Tensor:
        """``[B, width]``, H for each layer and direction."""
        # Some language models pad in front; the LSTM's packing wants the padding at the end.
        order_BT = (~mask_BT).to(torch.uint8).argsort(dim=1, stable=True)
        x_BTd = x_BTd.gather(1, order_BT[..., None].expand_as(x_BTd))
        length_B = mask_BT.sum(1).cpu()
        packed = pack_padded_sequence(x_BTd, length_B, batch_first=True, enforce_sorted=False)
        _, (state_HBd, _) = self.lstm(packed)
        return state_HBd.transpose(0, 1).flatten(1)


def align(x_BTd: Tensor, mask_BT: Tensor, target_BL: Tensor) -> Tensor:
    """Frames brought to the positions of another sequence, ``[B, L, d]``.

    Time is cut into as many equal spans as there are real target positions, and a position gets
    the mean of the frames that its span touches: of n frames and k positions, position i those from
    floor(i n / k) to ceil((i + 1) n / k). With fewer frames than positions they repeat.

    Args:
        x_BTd: frames.
        mask_BT: True on real ones, at least one a row.
        target_BL: True on the real target positions; the others become zeros.
    """
    n_B11, k_B11 = mask_BT.sum(1)[:, None, None], target_BL.sum(1)[:, None, None]
    place_B1T = (mask_BT.cumsum(1) - 1)[:, None, :]
    i_BL1 = (target_BL.cumsum(1) - 1)[:, :, None]
    first_BL1 = i_BL1 * n_B11 // k_B11
    stop_BL1 = -(-(i_BL1 + 1) * n_B11 // k_B11)
    inside_BLT = (place_B1T >= first_BL1) & (place_B1T < stop_BL1) & mask_BT[:, None, :]
    inside_BLT = inside_BLT & target_BL[..., None]
    weight_BLT = inside_BLT / inside_BLT.sum(2, keepdim=True).clamp(min=1)
    return weight_BLT.to(x_BTd.dtype) @ x_BTd


def pool_to_length(x_BTd: Tensor, mask_BT: Tensor, steps: int) -> Tensor:
    """A sequence of any length as ``steps`` steps, ``[B, K, d]``: `align` with equal spans."""
    return align(x_BTd, mask_BT, mask_BT.new_ones(len(mask_BT), steps))


def subsample(frames: Packed, most: int) -> Packed:
    """At most ``most`` frames of each utterance, evenly spread over its length.

    Frame ``i`` of a longer utterance of n frames is its frame ``floor(i n / most)``; a shorter one
    keeps all its frames.
    """
    if not len(frames.lengths) or int(frames.lengths.max()) <= most:
        return frames
    return _chosen(frames, frames.lengths.clamp(max=most))


def resample(frames: Packed, count: int) -> Packed:
    """Exactly ``count`` frames of each utterance, evenly spread; an absent one stays absent.

    Frame ``i`` is frame ``floor(i n / count)`` of an utterance's n: some are left out, or repeated.
    """
    return _chosen(frames, torch.where(frames.lengths > 0, count, 0))


def _chosen(frames: Packed, count_B: Tensor) -> Packed:
    """``count_B`` frames of each utterance, evenly spread over its length."""
    i_R = row_places(count_B)
    start_B = frames.lengths.cumsum(0) - frames.lengths
    start_R, length_R, count_R = (
        x_B.repeat_interleave(count_B) for x_B in (start_B, frames.lengths, count_B)
    )
    row_R = start_R + i_R * length_R // count_R
    return Packed(frames.values.index_select(0, row_R.to(frames.values.device)), count_B)


def row_places(length_B: Tensor) -> Tensor:
    """The place of each row within its utterance, ``[R]``."""
    end_B = length_B.cumsum(0)
    return torch.arange(int(end_B[-1])) - (end_B - length_B).repeat_interleave(length_B)


def row_layout(length_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where packed rows lie, worked out on the CPU, where the lengths are known.

    Returns:
        ``[R]`` each row's place in its utterance; ``[B, T]`` the row of each place, R where there
        is none; ``[B, T]`` True on places to look at: the real ones, and the first one of an
        utterance that has none.
    """
    place_T = torch.arange(max(1, int(length_B.max())))
    real_BT = place_T < length_B[:, None]
    start_B1 = (length_B.cumsum(0) - length_B)[:, None]
    row_BT = torch.where(real_BT, start_B1 + place_T, length_B.sum())
    return row_places(length_B), row_BT, real_BT | (place_T == 0)
