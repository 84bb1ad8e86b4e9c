"""Plan the demonstration dataset: speakers, splits, sentences and sentiments of all clips.

Everything follows from `SEED`. Each clip has its own seed, so it can be generated alone.
"""

from dataclasses import dataclass

import numpy as np

from manifests.demo.sentences import find_sentence, syllables

SEED = 20_250_301
SPEAKERS = {"train": 14, "valid": 2, "test": 4}
CLIPS_PER_SPEAKER = 6
FPS = 25
# Clips of each kind in a split; of all 120 they are 60, 25 and 15 percent.
KINDS = {
    "train": {"agree": 51, "sarcastic": 21, "independent": 12},
    "valid": {"agree": 7, "sarcastic": 3, "independent": 2},
    "test": {"agree": 14, "sarcastic": 6, "independent": 4},
}
WEIGHTS = (0.4, 0.3, 0.3)
Color = tuple[int, int, int]


@dataclass(frozen=True)
class Speaker:
    """The traits of a speaker, the same in all their clips: noise to a model of sentiment."""

    name: str
    pitch: float  # Hz, in a neutral voice
    tract: float  # factor on the formants: 1 an average vocal tract, above 1 a shorter one
    tempo: float  # factor on the speaking rate
    skin: Color
    hair: Color
    shirt: Color
    background: Color
    hair_style: int  # index into the styles of the face
    face_width: float  # factors, about 1
    face_height: float
    eye_size: float
    eye_distance: float
    brow: float  # thickness, factor
    iris: Color
    rest_mouth: float  # curve of the mouth at rest, in units of sentiment
    rest_brow: float


@dataclass(frozen=True)
class DemoClip:
    """One utterance: its speaker, split and text, and the three sentiments in [-3, 3]."""

    id: str
    speaker: Speaker
    split: str
    kind: str
    text: str
    text_sentiment: float
    voice_sentiment: float
    face_sentiment: float
    rate: float  # syllables a second
    frames: int
    seed: tuple[int, ...]

    @property
    def duration(self) -> float:
        """Length in seconds, a whole number of frames."""
        return self.frames / FPS

    @property
    def label(self) -> float:
        """clip(0.4 t + 0.3 a + 0.3 v, -3, 3), to four decimals."""
        return fuse(self.text_sentiment, self.voice_sentiment, self.face_sentiment)


def fuse(t: float, a: float, v: float) -> float:
    """Return the multimodal label of three unimodal sentiments."""
    return round(float(np.clip(np.dot(WEIGHTS, (t, a, v)), -3, 3)), 4)


def make_plan() -> list[DemoClip]:
    """Return the 120 clips, in the order of their ids."""
    speakers = _speakers(np.random.default_rng([SEED, 0]))
    clips: list[DemoClip] = []
    used: set[str] = set()
    first = 0
    for number, (split, count) in enumerate(SPEAKERS.items()):
        rng = np.random.default_rng([SEED, 1, number])
        moods = _moods(rng, KINDS[split])
        for i, (kind, positive) in enumerate(moods):
            index = first + i // CLIPS_PER_SPEAKER
            clip = _clip(rng, speakers[index], split, kind, positive, i % CLIPS_PER_SPEAKER, used)
            used.add(clip.text)
            clips.append(clip)
        first += count
    return clips


def _moods(rng: np.random.Generator, kinds: dict[str, int]) -> list[tuple[str, bool]]:
    """Draw kind and sign of the label of each clip in a split; half of the labels are positive.

    Sarcasm usually praises in words and means the opposite: every third is the other way round.
    """
    moods = [("sarcastic", i % 3 == 2) for i in range(kinds["sarcastic"])]
    half = sum(kinds.values()) // 2 - sum(positive for _, positive in moods)
    others = [kind for kind, count in kinds.items() if kind != "sarcastic" for _ in range(count)]
    rng.shuffle(others)
    moods += [(kind, i < half) for i, kind in enumerate(others)]
    return [moods[i] for i in rng.permutation(len(moods))]


def _clip(
    rng: np.random.Generator,
    speaker: Speaker,
    split: str,
    kind: str,
    positive: bool,
    take: int,
    used: set[str],
) -> DemoClip:
    while True:  # until the label has the wanted sign and is not near zero; three draws on average
        sentence = find_sentence(rng, _wanted_text(rng, kind, positive), used)
        t = sentence.sentiment
        a, v = (round(float(x), 2) for x in _face_and_voice(rng, kind, t))
        label = fuse(t, a, v)
        if abs(label) > 0.1 and (label > 0) == positive:
            break
    count = len(syllables(sentence.text))
    # Sad speech is slow, glad speech fast; the limits keep the clip between 2 and 4 seconds.
    rate = speaker.tempo * 4.4 * 1.13**a * float(rng.uniform(0.95, 1.05))
    rate = max(rate, count / 3.5)
    seconds = float(np.clip(count / rate + 0.5, 2, 4))
    number = int(speaker.name.removeprefix("speaker_"))
    return DemoClip(
        id=f"{speaker.name}_{take + 1}",
        speaker=speaker,
        split=split,
        kind=kind,
        text=sentence.text,
        text_sentiment=t,
        voice_sentiment=a,
        face_sentiment=v,
        rate=round(rate, 3),
        frames=round(seconds * FPS),
        seed=(SEED, 2, number, take),
    )


def _wanted_text(rng: np.random.Generator, kind: str, positive: bool) -> float:
    if kind == "agree":
        return float(rng.uniform(0.2, 3)) * (1 if positive else -1)
    if kind == "sarcastic":  # the words say the opposite of what is meant
        return float(rng.uniform(1, 2.8)) * (-1 if positive else 1)
    return float(rng.uniform(-3, 3))


def _face_and_voice(rng: np.random.Generator, kind: str, t: float) -> np.ndarray:
    if kind == "agree":
        return np.clip(t + rng.normal(0, 0.5, 2), -3, 3)
    if kind == "sarcastic":
        return -np.sign(t) * rng.uniform(1.2, 3, 2)
    return rng.uniform(-3, 3, 2)


def _speakers(rng: np.random.Generator) -> list[Speaker]:
    total = sum(SPEAKERS.values())
    # Spread evenly and shuffled, so that no split has all the low voices.
    pitches = 95 * (225 / 95) ** ((rng.permutation(total) + rng.uniform(0, 1, total)) / total)
    skins = rng.permutation(total) / (total - 1)
    hues = rng.permutation(total) / total
    styles = rng.permutation(np.arange(total) % 4)
    speakers = []
    for i in range(total):
        darkness = float(skins[i])
        hair = HAIR[int(rng.integers(len(HAIR)))] if darkness < 0.6 else HAIR[i % 2]
        speakers.append(
            Speaker(
                name=f"speaker_{i + 1:02d}",
                pitch=round(float(pitches[i]), 1),
                # High voices come from shorter tracts, loosely.
                tract=round(
                    float(0.88 + 0.24 * (pitches[i] - 95) / 130 + rng.uniform(-0.04, 0.04)), 3
                ),
                tempo=round(float(rng.uniform(0.92, 1.08)), 3),
                skin=_mix((255, 224, 200), (126, 82, 58), darkness),
                hair=hair,
                shirt=_hue(float(rng.uniform()), 0.55, 0.62),
                background=_hue(float(hues[i]), 0.22, 0.86),
                hair_style=int(styles[i]),
                face_width=round(float(rng.uniform(0.93, 1.07)), 3),
                face_height=round(float(rng.uniform(0.95, 1.05)), 3),
                eye_size=round(float(rng.uniform(0.9, 1.12)), 3),
                eye_distance=round(float(rng.uniform(0.93, 1.07)), 3),
                brow=round(float(rng.uniform(0.8, 1.25)), 3),
                iris=IRISES[int(rng.integers(len(IRISES)))],
                rest_mouth=round(float(rng.normal(0, 0.3)), 3),
                rest_brow=round(float(rng.normal(0, 0.3)), 3),
            )
        )
    return speakers


HAIR: tuple[Color, ...] = (
    (30, 24, 24), (60, 40, 28), (112, 72, 40), (196, 152, 84), (150, 68, 36), (150, 148, 150),
)  # fmt: skip
IRISES: tuple[Color, ...] = ((84, 56, 36), (60, 104, 150), (76, 122, 82), (110, 86, 50))


def _mix(a: Color, b: Color, share: float) -> Color:
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue


def _hue(hue: float, saturation: float, value: float) -> Color:
    red, green, blue = (
        round(255 * value * (1 - saturation * max(0.0, min(1.0, abs((hue * 6 + s) % 6 - 3) - 1))))
        for s in (3, 1, 5)
    )
    return red, green, blue
