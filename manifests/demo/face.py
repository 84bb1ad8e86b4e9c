"""Draw a face: brows, eyes and mouth show the sentiment, the rest identifies the speaker.

Coordinates are in a picture of 256 x 256; everything is drawn at `SCALE` times that size and
reduced, which smooths the jagged edges of Pillow's primitives.
"""

from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from manifests.demo.plan import FPS, Color, DemoClip, Speaker

SIZE = 256
SCALE = 2
CENTRE = (128.0, 124.0)
ZOOM = 1.18  # about CENTRE: the face fills the picture
Point = tuple[float, float]


def draw_frames(clip: DemoClip, opening: np.ndarray) -> Iterator[bytes]:
    """Yield the clip's images as raw RGB, 256 x 256 x 3 bytes each.

    `opening` [frames] in [0, 1] opens the mouth with the voice.
    """
    rng = np.random.default_rng([*clip.seed, 1])
    time = np.arange(clip.frames) / FPS
    scene, head = _scene(clip.speaker), _head(clip.speaker)
    box = head.getbbox()
    assert box is not None  # something is drawn on it
    (left, top), head = box[:2], head.crop(box)
    # The expression always moves, and differs a little from the sentiment.
    felt = clip.face_sentiment / 3 + rng.normal(0, 0.2)
    mood = felt * (0.85 + 0.15 * _drift(time, rng)) + 0.06 * _drift(time, rng)
    brows = mood + 0.12 * _drift(time, rng)
    lids = 1 - _blinks(time, rng)
    sway = np.stack([3.5 * _drift(time, rng), 2 * _drift(time, rng)], axis=1)
    turn = np.stack([3.5 * _drift(time, rng), 2 * _drift(time, rng)], axis=1)
    for i in range(clip.frames):
        picture = scene.copy()
        dx, dy = sway[i]
        shift = (left + round(dx * ZOOM * SCALE), top + round(dy * ZOOM * SCALE))
        picture.paste(head, shift, head)
        # The features move more than the head, which reads as turning it.
        origin = (CENTRE[0] + dx + turn[i, 0], CENTRE[1] + dy + turn[i, 1])
        _features(picture, clip.speaker, origin, mood[i], brows[i], lids[i], opening[i])
        yield picture.reduce(SCALE).tobytes()


def _drift(time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a slow, smooth curve around zero, roughly in [-1, 1]: [frames]."""
    rates, phases = rng.uniform(0.2, 0.9, 3), rng.uniform(0, 2 * np.pi, 3)
    return np.sin(2 * np.pi * rates * time[:, None] + phases).mean(axis=1) * 1.5


def _blinks(time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw how far the eyes are shut by blinking, 0 to 1: [frames]."""
    shut = np.zeros_like(time)
    at = rng.uniform(0.3, 1.8)
    while at < time[-1]:
        shut = np.maximum(shut, np.clip(1.4 - np.abs(time - at) / 0.07, 0, 1))
        at += rng.uniform(1.2, 3)
    return shut


class _Pen:
    """ImageDraw in the picture's coordinates, relative to an origin."""

    def __init__(self, picture: Image.Image, origin: Point) -> None:
        self.draw = ImageDraw.Draw(picture)
        self.origin = origin

    def at(self, points: list[Point]) -> list[Point]:
        """Return the points in pixels of the large picture."""
        x0, y0 = self.origin[0] - CENTRE[0], self.origin[1] - CENTRE[1]
        return [
            ((CENTRE[0] + ZOOM * (x + x0)) * SCALE, (CENTRE[1] + ZOOM * (y + y0)) * SCALE)
            for x, y in points
        ]

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Color) -> None:
        self.draw.ellipse(self.at([(x - rx, y - ry), (x + rx, y + ry)]), fill=fill)

    def polygon(self, points: list[Point], fill: Color) -> None:
        self.draw.polygon(self.at(points), fill=fill)

    def stroke(self, points: list[Point], fill: Color, width: float) -> None:
        """Draw a polyline with round ends and joints."""
        self.draw.line(self.at(points), fill=fill, width=round(width * ZOOM * SCALE), joint="curve")
        for x, y in (points[0], points[-1]):
            self.ellipse(x, y, width / 2, width / 2, fill)


def _shade(color: Color, factor: float) -> Color:
    """Return a darker color if `factor` is below 1, a lighter one (towards white) above."""
    if factor <= 1:
        red, green, blue = (round(c * factor) for c in color)
    else:
        red, green, blue = (round(c + (255 - c) * (factor - 1)) for c in color)
    return red, green, blue


def _blend(a: Color, b: Color, share: float) -> Color:
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue


def _arc(x: float, y: float, rx: float, ry: float, start: float, end: float) -> list[Point]:
    """Return points on an ellipse; angles in degrees, 0 to the right, 90 down."""
    angles = np.radians(np.linspace(start, end, 40))
    return [(x + rx * float(np.cos(a)), y + ry * float(np.sin(a))) for a in angles]


def _scene(who: Speaker) -> Image.Image:
    """Draw the parts that do not move: the background, lighter above, and the shoulders."""
    side = SIZE * SCALE
    ramp = Image.linear_gradient("L").resize((side, side))
    light = Image.new("RGB", (side, side), _shade(who.background, 1.35))
    picture = Image.composite(Image.new("RGB", (side, side), who.background), light, ramp)
    pen = _Pen(picture, CENTRE)
    neck = _shade(who.skin, 0.84)
    pen.ellipse(0, 158, 98, 68, who.shirt)
    pen.ellipse(0, 98, 34, 17, neck)
    pen.polygon([(-25, 48), (25, 48), (29, 98), (-29, 98)], neck)
    pen.stroke(_arc(0, 98, 34, 17, 0, 180), _shade(who.shirt, 0.8), 4)
    return picture


def _head(who: Speaker) -> Image.Image:
    """Draw hair, ears and the skin of the face on a transparent background."""
    side = SIZE * SCALE
    color = Image.new("RGB", (side, side), who.skin)
    mask = Image.new("L", (side, side), 0)
    pen, stencil = _Pen(color, CENTRE), _Pen(mask, CENTRE)

    def both(x: float, y: float, rx: float, ry: float, fill: Color) -> None:
        pen.ellipse(x, y, rx, ry, fill)
        stencil.draw.ellipse(stencil.at([(x - rx, y - ry), (x + rx, y + ry)]), fill=255)

    w, h = 62 * who.face_width, 76 * who.face_height
    dark = _shade(who.skin, 0.82)
    # Behind the face: short, round, long or tied hair.
    match who.hair_style:
        case 0:
            both(0, -24, w * 1.08, h * 0.80, who.hair)
        case 1:
            both(0, -18, w * 1.26, h * 0.98, who.hair)
        case 2:
            both(0, -16, w * 1.20, h * 0.92, who.hair)
            for side_x in (-1, 1):
                both(side_x * w * 0.92, 40, w * 0.34, h * 0.66, who.hair)
        case _:
            both(0, -h * 1.06, w * 0.42, h * 0.26, who.hair)
            both(0, -24, w * 1.10, h * 0.82, who.hair)
    for side_x in (-1, 1):
        both(side_x * w, 4, 11, 16, _shade(who.skin, 0.92))
        pen.ellipse(side_x * w, 5, 6, 10, dark)
    # An egg: the upper half round, the lower half narrowing to the chin.
    angles = np.radians(np.linspace(0, 360, 120))
    narrowing = 1 - 0.13 * np.clip(np.sin(angles), 0, 1) ** 1.5
    egg = [
        (float(w * np.cos(a) * n), float(h * np.sin(a) + 2))
        for a, n in zip(angles, narrowing, strict=True)
    ]
    pen.polygon(egg, who.skin)
    stencil.draw.polygon(stencil.at(egg), fill=255)

    # The fringe is hair clipped to the face, above an ellipse of skin.
    fringe = Image.new("L", (side, side), 0)
    _Pen(fringe, CENTRE).draw.polygon(stencil.at(egg), fill=255)
    bare = Image.new("L", (side, side), 0)
    shape = {0: (0, 30, 1.12, 1.12), 1: (9, 34, 1.16, 1.12), 2: (-9, 34, 1.16, 1.12)}
    x, y, rx, ry = shape.get(who.hair_style, (0, 34, 1.04, 1.20))
    box = stencil.at([(x - w * rx, y - h * ry), (x + w * rx, y + h * ry)])
    ImageDraw.Draw(bare).ellipse(box, fill=255)
    color.paste(who.hair, mask=ImageChops.subtract(fringe, bare))
    color.putalpha(mask)
    return color


def _features(
    picture: Image.Image,
    who: Speaker,
    origin: Point,
    mood: float,
    brows: float,
    lids: float,
    opening: float,
) -> None:
    """Draw eyes, brows, nose, cheeks and mouth; `mood` and `brows` are in about [-1, 1]."""
    pen = _Pen(picture, origin)
    smile = float(np.clip(mood + who.rest_mouth / 6, -1.15, 1.15))
    brow = float(np.clip(brows + who.rest_brow / 6, -1.15, 1.15))
    blush = _blend(who.skin, (236, 110, 100), 0.08 + 0.40 * max(smile, 0))
    apart = 26 * who.eye_distance
    for side in (-1, 1):
        pen.ellipse(side * 35, 25 - 3 * smile, 12, 8.5, blush)
        _eye(pen, who, side * apart, side, smile, lids)
        _brow(pen, who, side * apart, side, brow)
    dark = _shade(who.skin, 0.78)
    pen.stroke([(-1, -4), (-5, 18), (-6, 22), (0, 25), (6, 23)], dark, 2.6)
    _mouth(pen, who, smile, opening)


def _eye(pen: _Pen, who: Speaker, x: float, side: int, smile: float, lids: float) -> None:
    y, rx = -8.0, 15.5 * who.eye_size
    # Wide open when glad, narrowed when not.
    open_ = max(0.04, lids * (0.76 + 0.36 * smile))
    ry = 11.5 * who.eye_size * open_
    lid = _shade(who.skin, 0.9)
    pen.ellipse(x, y - 1, rx + 2, 13 * who.eye_size, lid)
    if ry < 1.5:
        pen.stroke(_arc(x, y, rx, 3, 170, 10), _shade(who.skin, 0.4), 2.6)
        return
    pen.ellipse(x, y, rx, ry, (250, 250, 248))
    radius = 7.4 * who.eye_size
    # The iris is cut by the lids: draw it no higher than the opening.
    tall = min(radius, ry)
    pen.ellipse(x, y, radius, tall, who.iris)
    pen.ellipse(x, y, radius * 0.5, min(radius * 0.5, ry), (18, 16, 18))
    if ry > 4:
        pen.ellipse(x + 2.2, y - 2.4, 1.7, 1.7, (255, 255, 255))
    # A frown slants the upper lid towards the nose.
    lash = [
        (px, py + side * (px - x) / rx * 3 * min(smile, 0))
        for px, py in _arc(x, y, rx, ry, 180, 360)
    ]
    if smile < 0:
        pen.polygon([*lash, (x + rx + 1, y - ry - 4), (x - rx - 1, y - ry - 4)], lid)
    pen.stroke(lash, _shade(who.hair, 0.6), 2.4)
    if smile > 0.3:  # cheeks push the lower lid up
        low = y + ry * (1.15 - 0.45 * (smile - 0.3))
        pen.ellipse(x, low + 6, rx, 6, who.skin)


def _brow(pen: _Pen, who: Speaker, x: float, side: int, brow: float) -> None:
    y = -31.0 - 7 * brow
    inner, outer = x - side * 15, x + side * 16
    frown = max(-brow, 0.0)
    arch = 5 + 3 * brow
    points = []
    for share in np.linspace(0, 1, 16):
        at = float(inner + (outer - inner) * share)
        # A frown pulls the inner end down, joy lifts the middle.
        height = (
            y + 14 * frown * (1 - share) - 2 * frown * share - arch * float(np.sin(np.pi * share))
        )
        points.append((at + side * -3 * frown * (1 - float(share)), height))
    pen.stroke(points, _shade(who.hair, 0.85), 6 * who.brow)


def _mouth(pen: _Pen, who: Speaker, smile: float, opening: float) -> None:
    y, half = 46.0, 25 + 8 * max(smile, 0.0)
    bend = 17 * smile  # height of the corners above the middle, in pixels
    gap = 1.5 + 15 * opening * (0.8 + 0.2 * smile)
    lips = _blend(who.skin, (176, 52, 62), 0.55)
    share = np.linspace(-1, 1, 41)
    line = y + bend * (0.5 - share**2)
    swell = np.sqrt(np.clip(1 - share**2, 0, 1))

    def curve(offset: np.ndarray) -> list[Point]:
        return [(float(half * s), float(o)) for s, o in zip(share, line + offset, strict=True)]

    top, bottom = -0.35 * gap * swell, 0.65 * gap * swell
    pen.polygon(curve(top - 4.2 * swell) + curve(bottom + 5.2 * swell)[::-1], lips)
    pen.polygon(curve(top) + curve(bottom)[::-1], (84, 22, 30))
    if gap > 5:
        teeth = np.minimum(top + 0.34 * gap, bottom)
        pen.polygon(curve(top) + curve(teeth)[::-1], (246, 242, 236))
        tongue = np.maximum(bottom - 0.3 * gap * swell**3, teeth)
        pen.polygon(curve(tongue) + curve(bottom)[::-1], (196, 88, 92))
    pen.stroke(curve(top), _shade(lips, 0.7), 1.6)
    # The corners carry the expression when the lips are apart.
    for s in (-1, 1):
        corner = y - bend / 2
        pen.stroke(
            [(s * half, corner), (s * (half + 4), corner - 4 * smile)], _shade(lips, 0.7), 2.6
        )
