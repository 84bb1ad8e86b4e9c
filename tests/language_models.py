"""Small language models with random weights, each saved as its authors save theirs."""

from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

WORDS = ("good", "bad", "so", "the", "film", "was", "a", "it")
CHINESE = ("我", "很", "喜", "欢", "这", "部", "电", "影", "不")
LETTERS = sorted(set("".join(WORDS)))
SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
BERT_SIZES = {**SIZES, "intermediate_size": 32}
LIKE_ROBERTA = {"max_position_embeddings": 66, "type_vocab_size": 1, "pad_token_id": 1}
LAYERS = 3

ROBERTA_MARKS = ("<s>", "<pad>", "</s>", "<unk>")
XLNET_MARKS = ("<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eop>", "<eod>")


def word_pieces(*first: str, words=WORDS) -> dict[str, int]:
    return {piece: i for i, piece in enumerate((*first, *words, "##s"))}


def unigrams(*first: str, last: tuple[str, ...] = ()) -> list[tuple[str, float]]:
    pieces = [("▁" + word, -1.0) for word in WORDS] + [(c, -5.0) for c in ("▁", *LETTERS)]
    return [*((mark, 0.0) for mark in first), *pieces, *((mark, 0.0) for mark in last)]


def byte_pairs(*first: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary and the merges that lead to each word, with and without a space before it."""
    pieces, merges = [*first, "Ġ", *LETTERS], []
    for word in WORDS:
        for letters in (list(word), ["Ġ", *word]):
            for end in range(1, len(letters)):
                merge = "".join(letters[:end]), letters[end]
                if merge not in merges:
                    merges.append(merge)
                    pieces.append("".join(merge))
    return {piece: i for i, piece in enumerate(pieces)}, merges


def tokenizer_of(name: str) -> PreTrainedTokenizerBase:
    bert = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    if name in ("bert", "sentence-bert"):
        return transformers.BertTokenizer(vocab=word_pieces(*bert))
    if name == "chinese-bert":
        return transformers.BertTokenizer(vocab=word_pieces(*bert, words=CHINESE))
    if name == "roberta":
        vocabulary, merges = byte_pairs(*ROBERTA_MARKS, "<mask>")
        return transformers.RobertaTokenizer(vocab=vocabulary, merges=merges)
    if name == "gpt2":
        vocabulary, merges = byte_pairs("<|endoftext|>")
        return transformers.GPT2Tokenizer(vocab=vocabulary, merges=merges)
    if name == "xlnet":
        return transformers.XLNetTokenizer(vocab=unigrams(*XLNET_MARKS))
    if name == "deberta":
        marks = ("[PAD]", "[CLS]", "[SEP]", "[UNK]")
        return transformers.DebertaV2Tokenizer(vocab=unigrams(*marks, last=("[MASK]",)))
    if name == "xlm-roberta":
        vocabulary = unigrams(*ROBERTA_MARKS, last=("<mask>",))
        return transformers.XLMRobertaTokenizer(vocab=vocabulary)
    assert name == "t5"
    return transformers.T5Tokenizer(vocab=unigrams("<pad>", "</s>", "<unk>"), extra_ids=0)


def model_of(name: str, vocabulary: int) -> PreTrainedModel:
    has = {"vocab_size": vocabulary}
    if name in ("bert", "chinese-bert", "sentence-bert"):
        return transformers.BertModel(transformers.BertConfig(**has, **BERT_SIZES))
    if name == "roberta":
        config = transformers.RobertaConfig(**has, **BERT_SIZES, **LIKE_ROBERTA)
        return transformers.RobertaModel(config)
    if name == "xlm-roberta":
        config = transformers.XLMRobertaConfig(**has, **BERT_SIZES, **LIKE_ROBERTA)
        return transformers.XLMRobertaModel(config)
    if name == "xlnet":
        sizes = {"d_model": 16, "n_layer": LAYERS, "n_head": 2, "d_inner": 32}
        return transformers.XLNetModel(transformers.XLNetConfig(**has, **sizes))
    if name == "deberta":  # version 3's attention: relative positions, no segments
        relative = {
            **{"relative_attention": True, "position_buckets": 8, "pos_att_type": "p2c|c2p"},
            **{"norm_rel_ebd": "layer_norm", "share_att_key": True},
            **{"position_biased_input": False, "type_vocab_size": 0},
        }
        config = transformers.DebertaV2Config(**has, **BERT_SIZES, **relative)
        return transformers.DebertaV2Model(config)
    if name == "gpt2":
        sizes = {"n_embd": 16, "n_layer": LAYERS, "n_head": 2}
        ends = {"bos_token_id": 0, "eos_token_id": 0}
        return transformers.GPT2Model(transformers.GPT2Config(**has, **sizes, **ends))
    assert name == "t5"
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": LAYERS, "num_heads": 2}
    return transformers.T5Model(transformers.T5Config(**has, **sizes))


NAMES = (
    *("bert", "chinese-bert", "sentence-bert", "roberta", "xlnet"),
    *("deberta", "xlm-roberta", "t5", "gpt2"),
)


def save_language_model(name: str, folder: Path) -> str:
    """A folder that ``text.model`` may name: tokenizer, configuration, random weights."""
    tokenizer = tokenizer_of(name)
    torch.manual_seed(0)
    tokenizer.save_pretrained(folder)
    model_of(name, len(tokenizer)).save_pretrained(folder)
    if name == "sentence-bert":  # what sentence-transformers adds to a plain model
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
        (folder / "modules.json").write_text('[{"idx": 0, "name": "0", "path": ""}]')
    return str(folder)
