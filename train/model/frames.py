"""Frame operations: padding, alignment, resampling, and sequences to vectors.

Letters: B batch, T frames, L target positions, K steps, d width of a frame, H width of a state.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from cache import Packed
from train.config import Config


class Frames(nn.Module):
    """Pads the frames of one modality and normalises them; an absent one is one learned frame.

    Layer normalisation replaces the normalisation over the dataset or the batch in the papers' own
    pipelines: it needs no statistics and works with a batch of one utterance.

    Args:
        width: columns of the features, d.
        config: ``perceiver.frames`` and ``perceiver.max_frames`` select frames, same as in the
            perceiver.
    """

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.frames, self.max_frames = config.perceiver.frames, config.perceiver.max_frames
        self.norm = nn.LayerNorm(width)
        self.missing = nn.Parameter(0.02 * torch.randn(width))

    def forward(self, frames: Packed) -> tuple[Tensor, Tensor]:
        """Return ``x [B, T, d]`` and ``mask [B, T]``, True on real frames, at least one per row."""
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
    """The last states of an LSTM over the real positions, all layers and directions concatenated.

    Args:
        width: d.
        hidden: H, of one layer and direction.
        layers: number of layers.
        bidirectional: whether each layer also reads in reverse.
    """

    def __init__(
        self, width: int, hidden: int, layers: int = 1, bidirectional: bool = False
    ) -> None:
        super().__init__()
        self.width = hidden * layers * (2 if bidirectional else 1)
        self.lstm = nn.LSTM(width, hidden, layers, batch_first=True, bidirectional=bidirectional)

    def forward(self, x_BTd: Tensor, mask_BT: Tensor) -> Tensor:
        """Return ``[B, width]``, H for each layer and direction."""
        # Some language models pad on the left; packing for the LSTM needs padding on the right.
        order_BT = (~mask_BT).to(torch.uint8).argsort(dim=1, stable=True)
        x_BTd = x_BTd.gather(1, order_BT[..., None].expand_as(x_BTd))
        length_B = mask_BT.sum(1).cpu()
        packed = pack_padded_sequence(x_BTd, length_B, batch_first=True, enforce_sorted=False)
        _, (state_HBd, _) = self.lstm(packed)
        return state_HBd.transpose(0, 1).flatten(1)


def align(x_BTd: Tensor, mask_BT: Tensor, target_BL: Tensor) -> Tensor:
    """Align frames to the positions of another sequence, ``[B, L, d]``.

    Time is divided into one equal span per real target position, and each position gets the mean of
    the frames that its span touches: with n frames and k positions, position i those from
    floor(i n / k) to ceil((i + 1) n / k). With fewer frames than positions, frames repeat.

    Args:
        x_BTd: frames.
        mask_BT: True on real frames, at least one per row.
        target_BL: True on the real target positions; the others become zero.
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
    """Pool a sequence of any length to ``steps`` steps, ``[B, K, d]``: `align` to equal spans."""
    return align(x_BTd, mask_BT, mask_BT.new_ones(len(mask_BT), steps))


def subsample(frames: Packed, most: int) -> Packed:
    """Subsample each utterance to at most ``most`` frames, evenly spread over its length.

    Frame ``i`` of a longer utterance of n frames is its frame ``floor(i n / most)``; a shorter one
    keeps all its frames.
    """
    if not len(frames.lengths) or int(frames.lengths.max()) <= most:
        return frames
    return _chosen(frames, frames.lengths.clamp(max=most))


def resample(frames: Packed, count: int) -> Packed:
    """Resample each utterance to ``count`` frames, evenly spread; an absent one stays absent.

    Frame ``i`` is frame ``floor(i n / count)`` of an utterance's n: some are skipped or repeated.
    """
    return _chosen(frames, torch.where(frames.lengths > 0, count, 0))


def _chosen(frames: Packed, count_B: Tensor) -> Packed:
    """Select ``count_B`` frames of each utterance, evenly spread over its length."""
    i_R = row_places(count_B)
    start_B = frames.lengths.cumsum(0) - frames.lengths
    start_R, length_R, count_R = (
        x_B.repeat_interleave(count_B) for x_B in (start_B, frames.lengths, count_B)
    )
    row_R = start_R + i_R * length_R // count_R
    return Packed(frames.values.index_select(0, row_R.to(frames.values.device)), count_B)


def row_places(length_B: Tensor) -> Tensor:
    """Return the position of each row within its utterance, ``[R]``."""
    end_B = length_B.cumsum(0)
    return torch.arange(int(end_B[-1])) - (end_B - length_B).repeat_interleave(length_B)


def row_layout(length_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the layout of packed rows on the CPU, where the lengths are.

    Returns:
        ``[R]`` each row's position in its utterance; ``[B, T]`` the row at each position, R on
        padding; ``[B, T]`` True on positions to attend to: the real ones, and the first one of an
        utterance without rows.
    """
    place_T = torch.arange(max(1, int(length_B.max())))
    real_BT = place_T < length_B[:, None]
    start_B1 = (length_B.cumsum(0) - length_B)[:, None]
    row_BT = torch.where(real_BT, start_B1 + place_T, length_B.sum())
    return row_places(length_B), row_BT, real_BT | (place_T == 0)
