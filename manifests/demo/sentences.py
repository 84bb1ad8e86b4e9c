"""Compose transcripts by a small grammar whose words have graded sentiment.

A sentence's sentiment is a sum over its words, so the true label of the text is known exactly.
"""

import re
from dataclasses import dataclass

import numpy as np

SUBJECTS = (
    "the film", "the new phone", "our dinner", "the lecture", "my train ride", "the concert",
    "the hotel room", "this book", "the weather", "my first day", "the service", "the coffee",
    "their apartment", "the meeting", "the garden", "our holiday", "the update", "the match",
    "the museum", "the neighbourhood", "her speech", "the delivery", "the party", "the show",
)  # fmt: skip
ADJECTIVES = {
    "wonderful": 2.7, "brilliant": 2.6, "fantastic": 2.8, "delightful": 2.3, "beautiful": 2.2,
    "great": 2.0, "lovely": 1.9, "good": 1.4, "pleasant": 1.3, "nice": 1.2, "decent": 0.8,
    "fine": 0.6, "okay": 0.3, "ordinary": 0.0, "average": -0.1, "plain": -0.3, "dull": -1.1,
    "tiring": -1.0, "boring": -1.4, "bad": -1.7, "annoying": -1.6, "disappointing": -1.9,
    "ugly": -2.0, "awful": -2.5, "terrible": -2.6, "horrible": -2.8, "dreadful": -2.4,
}  # fmt: skip
VERBS = {
    "loved": 2.5, "enjoyed": 1.8, "liked": 1.4, "did not mind": 0.3, "noticed": 0.0,
    "did not like": -1.3, "disliked": -1.4, "regretted": -1.7, "could not stand": -2.3,
    "hated": -2.6,
}  # fmt: skip
DEGREES = {"": 1.0, "a bit": 0.5, "fairly": 0.8, "really": 1.15, "so": 1.1, "absolutely": 1.3}
OPENERS = ("", "honestly, ", "you know, ", "I have to say, ", "this time ", "in the end ")
TIMES = ("", " yesterday", " this morning", " last week", " on Sunday", " again")


@dataclass(frozen=True)
class Sentence:
    """A transcript and its sentiment in [-3, 3]."""

    text: str
    sentiment: float


def draw_sentence(rng: np.random.Generator) -> Sentence:
    """Draw one sentence of the grammar at random."""

    def pick(choices: tuple[str, ...] | dict[str, float]) -> str:
        return list(choices)[rng.integers(len(choices))]

    def degree(adjective: str) -> str:
        # "absolutely" goes with strong words only, "fairly" and "a bit" with weak ones.
        strong = abs(ADJECTIVES[adjective]) >= 1.9
        unfit = {"fairly", "a bit"} if strong else {"absolutely"}
        return pick(tuple(d for d in DEGREES if d not in unfit))

    opener, subject, when = pick(OPENERS), pick(SUBJECTS), pick(TIMES)
    adjective = pick(ADJECTIVES)
    much = degree(adjective)
    value = ADJECTIVES[adjective] * DEGREES[much]
    how = f"{much} {adjective}".strip()
    match int(rng.integers(4)):
        case 0:
            text = f"{opener}{subject} was {how}{when}"
        case 1:
            verb = pick(VERBS)
            value = VERBS[verb]
            text = f"{opener}I {verb} {subject}{when}"
        case 2:
            other = pick(ADJECTIVES)
            turn = "but" if value * ADJECTIVES[other] < 0 else "and"
            # The last word has more weight.
            value = 0.4 * value + 0.6 * ADJECTIVES[other]
            text = f"{subject} was {how}, {turn} the rest was {other}"
        case _:
            verb = pick(VERBS)
            turn = "but it" if value * VERBS[verb] < 0 else "it"
            value = 0.5 * value + 0.5 * VERBS[verb]
            text = f"{opener}I {verb} {subject}, {turn} was {how}"
    text = text[0].upper() + text[1:] + "."
    return Sentence(text, round(float(np.clip(value, -3, 3)), 2))


def find_sentence(rng: np.random.Generator, sentiment: float, used: set[str]) -> Sentence:
    """Find a sentence close to `sentiment` whose text is not in `used`: the best of 300 draws."""
    drawn = (draw_sentence(rng) for _ in range(300))
    return min((s for s in drawn if s.text not in used), key=lambda s: abs(s.sentiment - sentiment))


def syllables(text: str) -> list[str]:
    """Return the vowel of each syllable, roughly: one per group of vowel letters, no silent e."""
    words = re.findall(r"[a-z]+", text.lower())
    groups: list[str] = []
    for word in words:
        spoken = re.sub(r"(?<=[aeiouy][^aeiouy])e$", "", word)
        groups += re.findall(r"[aeiouy]+", spoken) or ["e"]
    return [group[0].replace("y", "i") for group in groups]
