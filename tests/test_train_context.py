"""Preceding utterances: from the right rows, in front of a target that is never cut."""

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.language_models import WORDS, tokenizer_of
from train.context import has_context, preceding
from train.model.language_model import tokenize

NULL = pd.NA
SPLITS = ("train", "valid", "test")


def rows_of(dialogues, turns, texts=None):
    return pd.DataFrame(
        {
            "dialogue": pd.array(dialogues, "string"),
            "turn": pd.array(turns, "Int64"),
            "text": pd.array(texts or [f"row {i}" for i in range(len(turns))], "string"),
        }
    )


def test_the_last_turns_of_the_same_dialogue_oldest_first():
    rows = rows_of(["x", "y", "x", "x", "y", "x"], [2, 0, 0, 1, 1, 7])
    assert preceding(rows, 2) == [
        ["row 2", "row 3"],
        [],
        [],
        ["row 2"],
        ["row 1"],
        ["row 3", "row 0"],  # turns need not follow one another
    ]
    assert preceding(rows, 9)[5] == ["row 2", "row 3", "row 0"]


def test_rows_without_a_turn_have_no_context_and_are_not_context():
    rows = rows_of(["x", NULL, "x", "x"], [0, 1, NULL, 3])
    assert preceding(rows, 5) == [[], [], [], ["row 0"]]


def test_rows_of_one_turn_do_not_precede_each_other():
    assert preceding(rows_of(["x"] * 3, [1, 1, 2]), 5) == [[], [], ["row 0", "row 1"]]


def test_the_manifests_own_context_comes_first():
    rows = rows_of(["x", "x", "x"], [0, 1, 2])
    rows["context"] = pd.array(["one\ntwo\n\nthree", NULL, ""], "string")
    assert preceding(rows, 2) == [["three"], [], []]  # the empty line was an utterance too
    assert preceding(rows, 9) == [["one", "two", "three"], [], []]


def test_silence_is_left_out():
    assert preceding(rows_of(["x"] * 3, [0, 1, 2], ["a", " ", "b"]), 2) == [[], ["a"], ["a"]]


def test_which_tables_tell_of_context():
    assert has_context(rows_of(["x"], [0]))
    assert has_context(rows_of([NULL], [NULL]).assign(context="said"))
    assert not has_context(rows_of(["x", NULL], [NULL, 0]))


@st.composite
def conversations(draw):
    """Rows of all splits; a dialogue may be in several of them. A text names its own row."""
    place = st.tuples(
        st.sampled_from(SPLITS),
        st.sampled_from(["x", "y", NULL]),
        st.one_of(st.integers(0, 6), st.just(NULL)),
    )
    drawn = draw(st.lists(place, max_size=25))
    splits, dialogues, turns = zip(*drawn, strict=True) if drawn else ((), (), ())
    texts = [f"row {i}" for i in range(len(drawn))]
    return rows_of(list(dialogues), list(turns), texts).assign(split=list(splits))


@settings(deadline=None, max_examples=60)
@given(conversations(), st.integers(1, 8))
def test_context_is_of_the_past_of_the_dialogue_in_the_split(table, turns):
    for name in SPLITS:
        rows = table[table["split"] == name]
        for (_, row), said in zip(rows.iterrows(), preceding(rows, turns), strict=True):
            named = table.loc[[int(text.removeprefix("row ")) for text in said]]
            assert (named["split"] == name).all()
            assert (named["dialogue"] == row["dialogue"]).all()
            assert (named["turn"] < row["turn"]).all()
            assert named["turn"].is_monotonic_increasing
            known = not (pd.isna(row["dialogue"]) or pd.isna(row["turn"]))
            if known:  # nothing nearer was passed over
                same = rows[(rows["dialogue"] == row["dialogue"]) & (rows["turn"] < row["turn"])]
                assert len(said) == min(turns, len(same))
                assert sorted(same["turn"])[len(same) - len(said) :] == named["turn"].tolist()


TOKENIZERS = {
    name: tokenizer_of(name) for name in ("bert", "roberta", "xlnet", "deberta", "t5", "gpt2")
}
TOKENIZERS["gpt2"].pad_token = TOKENIZERS["gpt2"].eos_token
sentences = st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map(" ".join)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None)
@given(
    text=sentences | st.just(""), context=st.lists(sentences, max_size=4), most=st.integers(4, 40)
)
def test_the_target_is_complete_after_as_much_context_as_fits(name, text, context, most):
    tokenizer = TOKENIZERS[name]
    separator = tokenizer.sep_token_id
    separator = tokenizer.eos_token_id if separator is None else separator
    alone = tokenize(tokenizer, [text], most)
    both = tokenize(tokenizer, [text], most, [context])
    ids, target = both.ids.tolist(), alone.ids.tolist()
    assert both.cut == alone.cut == (len(tokenizer(text)["input_ids"]) > most)
    opening = 1 if name in ("bert", "roberta", "deberta") else 0
    added = len(ids) - len(target)
    assert ids[:opening] == target[:opening]
    assert ids[opening + added :] == target[opening:]
    said = [
        token
        for turn in context
        for token in (*tokenizer(turn, add_special_tokens=False)["input_ids"], separator)
    ]
    assert ids[opening : opening + added] == said[len(said) - added :]
    if added < len(said):  # cut: no room is left, but for one that a lone separator would take
        assert len(ids) == most or (len(ids) == most - 1 and said[-added - 1] == separator)
    assert len(ids) <= most


def test_where_there_are_segments_context_and_target_are_a_pair():
    for name, types in {
        "bert": [0, 0, 0, 0, 0, 0, 1, 1, 1],  # [CLS] it was [SEP] so [SEP] good film [SEP]
        "xlnet": [0, 0, 0, 0, 0, 1, 1, 1, 2],  # it was <sep> so <sep> good film <sep> <cls>
    }.items():
        tokenizer = TOKENIZERS[name]
        if name == "xlnet":
            tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
        both = tokenize(tokenizer, ["good film", "so"], 16, [["it was", "so"], []])
        assert both.types[: both.lengths[0]].tolist() == types
        assert set(both.types[both.lengths[0] :].tolist()) <= {0, 2}  # alone: one segment
        pair = tokenizer("it was", "good film")  # the tokenizer's own idea of a pair
        one_turn = tokenize(tokenizer, ["good film"], 16, [["it was"]])
        assert one_turn.ids.tolist() == pair["input_ids"]
        assert one_turn.types.tolist() == pair["token_type_ids"]


def test_a_model_without_separator_is_a_clear_error():
    tokenizer = tokenizer_of("gpt2")
    tokenizer.pad_token, tokenizer.eos_token = "a", None
    with pytest.raises(ValueError, match=r"no separator token: set text.context_turns=0"):
        tokenize(tokenizer, ["good"], 8, [["bad"]])
