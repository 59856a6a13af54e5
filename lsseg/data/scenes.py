"""Draws seeded synthetic scenes for semantic segmentation, the built-in default data set.

The classes differ in shape and in texture, while their colours overlap. The scenes contain difficult outlines: wobbly
and concave curves, spikes, holes, thin lines, small discs, contact, occlusion, blurred edges, uneven light and noise.

A scene has the same bytes on every machine. Geometry and colours use integer arithmetic, NumPy keeps the stream of
``RandomState`` fixed, and OpenCV only blurs, resizes and dilates (its polygons and lines differ between versions).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

CLASSES: tuple[tuple[str, tuple[int, int, int]], ...] = (
    ("background", (38, 43, 56)),
    ("blob", (232, 106, 80)),
    ("ring", (38, 164, 148)),
    ("star", (240, 196, 72)),
    ("panel", (88, 116, 224)),
    ("wire", (214, 84, 164)),
    ("dots", (150, 208, 92)),
)  # name and display colour (RGB) of each class; its index is the label
VOID = 255  # mask value of pixels that belong to no class and are to be ignored
BLOB, RING, STAR, PANEL, WIRE, DOTS = range(1, len(CLASSES))
_THIN = (WIRE, DOTS)
U8 = NDArray[np.uint8]
I32 = NDArray[np.int32]
Rng = np.random.RandomState
Size = tuple[int, int]  # rows, columns
_TURN = 1024  # angle units in a full turn
_SIN: I32 = np.array([round(16384 * math.sin(2 * math.pi * k / _TURN)) for k in range(_TURN)], dtype=np.int32)
_STRIPES, _CHECKS, _GROOVES, _SPECKLE, _DOME = range(5)
_CLUTTER = (_STRIPES, _CHECKS, _SPECKLE)  # grooves or a dome would look like an unlabelled ring or dot
# The usual texture of each class: a wire looks like rope, and dots fade outwards from the middle of their cluster.
_HABIT = {BLOB: _SPECKLE, RING: _GROOVES, STAR: _CHECKS, PANEL: _STRIPES, WIRE: _STRIPES, DOTS: _DOME}
# Range of the nominal radius of each class, in 1/256 of the scale.
_REACH = {BLOB: (40, 78), RING: (50, 78), STAR: (57, 87), PANEL: (49, 80), WIRE: (44, 66), DOTS: (28, 44)}
_EDGED = 64  # added to the label of an object with a void border while the scene is being drawn


class _Thing(NamedTuple):
    """Holds one object before it is drawn: its class, and its centre and nominal radius in pixels."""

    kind: int
    cy: int
    cx: int
    radius: int


def _ints(rng: Rng, low: int, high: int, count: int) -> I32:
    """Draw ``count`` integers from [low, high); the dtype is fixed, as the default is narrower on some platforms."""
    return rng.randint(low, high, count, dtype=np.int64).astype(np.int32)


def _int(rng: Rng, low: int, high: int) -> int:
    """Draw one integer from [low, high)."""
    return int(rng.randint(low, high, dtype=np.int64))


def _sin(angle: I32) -> I32:
    """Return the sine of angles in 1/1024 turn, as integers where 16384 stands for one."""
    return _SIN.take(angle & (_TURN - 1))


def _polar(radius16: I32, angle: I32) -> I32:
    """Return points N×2 (x, y) from radii and angles; lengths are in 1/16 pixel, angles in 1/1024 turn."""
    compass = np.stack([_sin(angle + _TURN // 4), _sin(angle)], axis=1).astype(np.int64)
    return ((radius16[:, None] * compass + (1 << 13)) >> 14).astype(np.int32)


def _wobble(rng: Rng, radius: int, strength: int = 256) -> I32:
    """Draw a closed smooth curve of 64 points around the origin; ``strength`` is 0 (a circle) to 256 (the wildest)."""
    angle = np.arange(0, _TURN, 16, dtype=np.int32)
    order, limit = np.array([[[2], [3], [4], [5], [7]], [[56], [46], [32], [22], [14]]], dtype=np.int32)
    swing = limit * _ints(rng, -strength, strength + 1, 5)[:, None] >> 8
    wave = (swing * _sin(order * angle + _ints(rng, 0, _TURN, 5)[:, None])).sum(axis=0) >> 14
    return _polar((radius * (256 + wave) >> 4).astype(np.int32), angle)


def _star(rng: Rng, radius: int) -> I32:
    """Draw a star with 4 to 7 spikes of uneven length around the origin."""
    spikes = _int(rng, 4, 8)
    reach = 16 * radius * _ints(rng, 215, 300, 2 * spikes) >> 8
    reach[1::2] = reach[1::2] * _int(rng, 88, 130) >> 8
    angle = np.arange(2 * spikes, dtype=np.int32) * _TURN // (2 * spikes) + _int(rng, 0, _TURN)
    return _polar(reach, angle + _ints(rng, -_TURN // (12 * spikes), _TURN // (12 * spikes) + 1, 2 * spikes))


def _panel(rng: Rng, radius: int) -> I32:
    """Draw a slanted quadrilateral or L with straight sides around the origin."""
    half = _int(rng, 72, 124)
    angle, reach = [half, 512 - half, 512 + half, -half], [290, 290, 290, 290]
    if _int(rng, 0, 3) == 0:  # an L, which has a notch at one corner
        angle, reach = [*angle[:3], 768, 896, 1000], [290, 290, 290, 170, 75, 245]
    spread = radius * (np.array(reach, dtype=np.int32) - _ints(rng, 0, 70, len(reach))) >> 4
    return _polar(spread, np.array(angle, dtype=np.int32) + _int(rng, 0, _TURN))


def _wire(rng: Rng, radius: int) -> I32:
    """Draw an open, smoothly bending line of 36 points, about five radii long, with its middle at the origin."""
    step = np.arange(36, dtype=np.int32)
    bend = _int(rng, 60, 250) * _sin(step * _int(rng, 12, 48) + _int(rng, 0, _TURN)) >> 14
    angle = _int(rng, 0, _TURN) + bend + step * _int(rng, -9, 10)
    track = _polar(np.repeat(np.int32(radius * _int(rng, 30, 44) >> 4), 36), angle).cumsum(axis=0)
    return (track - track[18]).astype(np.int32)


def _dots(rng: Rng, radius: int, dot: int) -> list[I32]:
    """Draw a cluster of 4 to 7 discs around the origin, each about ``dot`` pixels in radius; some may touch."""
    circle = np.arange(0, _TURN, 64, dtype=np.int32)
    turn = _int(rng, 0, _TURN) + np.arange(_int(rng, 4, 8), dtype=np.int32) * 396  # the golden angle spreads the discs
    spots = _polar(_ints(rng, 5 * radius, 20 * radius, turn.size), turn)
    sizes = np.maximum(dot * _ints(rng, 170, 340, turn.size) >> 4, 32)
    return [_polar(np.repeat(size, 16), circle) + spot for size, spot in zip(sizes, spots, strict=True)]


def _curves(rng: Rng, thing: _Thing, root: int) -> list[I32]:
    """Draw an object's outlines (for a wire, its line) around the origin in 1/16 pixel; inner curves run backwards."""
    if thing.kind == RING:
        inner = max(2, thing.radius * _int(rng, 105, 165) >> 8)
        hole = _wobble(rng, inner, 60)[::-1] + _ints(rng, -2 * inner, 2 * inner + 1, 2)
        return [_wobble(rng, thing.radius, 90), hole]
    if thing.kind == DOTS:
        return _dots(rng, thing.radius, max(2, 9 * root >> 5))
    return [{BLOB: _wobble, STAR: _star, PANEL: _panel, WIRE: _wire}[thing.kind](rng, thing.radius)]


def _fill(curves: list[I32], rows: int, cols: int) -> U8:
    """Return the coverage (0 or 255) of closed curves by the winding number of pixel centres, in integer arithmetic."""
    ends = [np.concatenate([curve, np.concatenate([curve[1:], curve[:1]])], axis=1) for curve in curves]
    x0, y0, x1, y1 = np.concatenate(ends).astype(np.int64).T[:, :, None]
    above0, above1 = (y > 16 * np.arange(rows) + 8 for y in (y0, y1))
    edge, row = np.nonzero(above0 != above1)
    x0, y0, x1, y1 = (v[edge, 0] for v in (x0, y0, x1, y1))
    cross = x0 + (16 * row + 8 - y0) * (x1 - x0) // (y1 - y0)
    place = np.clip((cross + 8) >> 4, 0, cols) + row * (cols + 1)  # first pixel to the right of the crossing
    turns = np.bincount(place, np.sign(y0 - y1), rows * (cols + 1)).reshape(rows, cols + 1).cumsum(axis=1)
    return np.where(turns[:, :-1] > 0, np.uint8(255), np.uint8(0))


def _trace(line: I32, width: int, rows: int, cols: int) -> U8:
    """Return the coverage (0 or 255) of an open line that is ``width`` pixels wide."""
    gaps = np.diff(line, axis=0)[:, None]
    count = int(np.abs(gaps).max()) // 12 + 1  # points less than a pixel apart
    x, y = (line[:-1, None] + gaps * np.arange(count)[:, None] // count).reshape(-1, 2).T >> 4
    cover = np.zeros((rows, cols), dtype=np.uint8)
    inside = (x >= 0) & (x < cols) & (y >= 0) & (y < rows)
    cover[y[inside], x[inside]] = 255
    side = (2 * np.arange(width) - width + 1) ** 2
    return cv2.dilate(cover, (side + side[:, None] < width * width - 1).astype(np.uint8)).astype(np.uint8, copy=False)


def _rasterise(rng: Rng, thing: _Thing, size: Size, scale: int) -> tuple[U8, slice, slice]:
    """Return the coverage (0 or 255) of an object in its clipped bounding box, and the box's rows and columns."""
    root = math.isqrt(max(scale, 64) * 256 // 110)  # 16 at the default size; a wire stays thin in a large scene
    curves = [c + np.array([16 * thing.cx + 8, 16 * thing.cy + 8], dtype=np.int32) for c in _curves(rng, thing, root)]
    points = np.concatenate(curves) >> 4
    width = max(2, _int(rng, 30, 56) * root >> 8)
    # The box has room for the blurred edge. It is never empty, since it contains the object's centre in the scene.
    left, top = (max(0, int(v) - width - 4) for v in points.min(axis=0))
    right, bottom = (min(n, int(v) + width + 5) for v, n in zip(points.max(axis=0), size[::-1], strict=True))
    curves = [curve - np.array([16 * left, 16 * top], dtype=np.int32) for curve in curves]
    box = bottom - top, right - left
    cover = _trace(curves[0], width, *box) if thing.kind == WIRE else _fill(curves, *box)
    return cover, slice(top, bottom), slice(left, right)


def _texture(rng: Rng, style: int, y: I32, x: I32, pitch: int, radius: int) -> I32:
    """Draw a texture of about -100 to 100 with period ``pitch``; y (h×1) and x (1×w) are pixels from the centre."""
    if style == _SPECKLE:
        grain = rng.randint(0, 256, ((y.size + 1) // 2 + 1, (x.size + 1) // 2 + 1), dtype=np.uint8)
        return _enlarge(grain, (y.size, x.size), 3).astype(np.int32) * 2 - 256
    if style == _DOME:
        return np.maximum(90 - 150 * (y * y + x * x) // (radius * radius), -90)
    if style == _GROOVES:
        return _sin(np.sqrt(256 * (y * y + x * x)).astype(np.int32) * (_TURN // 16) // pitch) // 164
    sin, cos = (int(v) // pitch for v in _sin(_int(rng, 0, _TURN) + np.array([0, _TURN // 4], dtype=np.int32)))
    along = (x * cos + y * sin) >> 4
    if style == _STRIPES:
        return np.clip(_sin(along) // 80, -100, 100)
    across = (y * cos - x * sin) >> 4
    return np.where((along ^ across) & (_TURN // 2), np.int32(100), np.int32(-100))


def _lay(image: U8, tone: I32, colour: I32, swing: I32, alpha: U8) -> None:
    """Blend a texture into an image: ``colour`` at tone 0, plus ``swing`` at tone 128; ``alpha`` is opacity, 0..255."""
    ramp = np.clip(colour + (np.arange(-128, 128)[:, None] * swing >> 7), 0, 255).astype(np.uint16)
    weight = alpha.astype(np.uint16) + (alpha >> 7)  # 255 becomes 256, so that full cover hides everything below
    weight = cv2.merge([weight] * 3).astype(np.uint16, copy=False)  # broadcasting a last axis of 3 is slow
    image[...] = (image * (256 - weight) + ramp.take(tone + 128, axis=0, mode="clip") * weight + 128) >> 8


def _colour(rng: Rng, kind: int, under: I32, hard: int) -> I32:
    """Draw an object's colour: its class colour, moved by ``hard`` towards a random one and the colour ``under`` it."""
    own = np.array(CLASSES[kind][1], dtype=np.int32) + _ints(rng, -12, 13, 3)
    own = own + ((_ints(rng, 40, 226, 3) - own) * (210 * hard >> 8) >> 8)
    gap = (own - under) * (256 - (100 * hard >> 8)) >> 8
    least = 44 - (14 * hard >> 8)
    if int(np.abs(gap).max()) < least:  # keep it visible: lighter on a dark ground, darker on a light one
        gap = gap + (least if int(under.sum()) < 384 else -least)
    return under + gap


def _paint(rng: Rng, image: U8, labels: U8, thing: _Thing, scale: int, hard: int) -> tuple[U8, slice, slice]:
    """Draw one object: blurred and textured on the image, crisp on the labels; mark half of them for a void border.

    Returns its coverage (0 or 255) inside a box, and the box's rows and columns.
    """
    cover, rows, cols = _rasterise(rng, thing, (image.shape[0], image.shape[1]), scale)
    y = np.arange(rows.start, rows.stop, dtype=np.int32)[:, None] - thing.cy
    x = np.arange(cols.start, cols.stop, dtype=np.int32)[None, :] - thing.cx
    # At most a quarter of the objects get a random texture.
    style = _int(rng, 0, 5) if _int(rng, 0, 1024) < hard else _HABIT[thing.kind]
    pitch = max(4, scale * _int(rng, 15, 26) >> 8) if thing.kind not in _THIN else max(4, scale * 14 >> 8)
    light = _ints(rng, -64, 65, 2)
    tone = _texture(rng, style, y, x, pitch, thing.radius) + (y * int(light[0]) + x * int(light[1])) // thing.radius
    under = image[rows, cols][:: max(1, y.size // 4), :: max(1, x.size // 4)].reshape(-1, 3)
    colour = _colour(rng, thing.kind, under.sum(axis=0, dtype=np.int64).astype(np.int32) // len(under), hard)
    swing = _int(rng, 34, 60) + _ints(rng, -14, 15, 3)
    taps = min(7, (1 if thing.kind in _THIN else 3) + 2 * (_int(rng, 0, 512) + 2 * hard >> 8))
    _lay(image[rows, cols], tone, colour, swing, cv2.GaussianBlur(cover, (taps, taps), 0).astype(np.uint8, copy=False))
    np.copyto(labels[rows, cols], np.uint8(thing.kind + _EDGED * _int(rng, 0, 2)), where=cover > 0)
    return cover, rows, cols


def _clouds(rng: Rng, size: Size, cells: int, channels: int) -> I32:
    """Draw a smooth random field H×W×channels, 0..255, with about ``cells`` bumps along the short side."""
    rows, cols = (min(64, max(2, cells * n // min(size))) for n in size)
    grid = rng.randint(0, 256, (rows, cols, channels), dtype=np.uint8)
    return _enlarge(_enlarge(grid, (4 * rows, 4 * cols), 1), size, 7).reshape(*size, channels).astype(np.int32)


def _enlarge(image: U8, size: Size, taps: int) -> U8:
    """Blur an image over ``taps`` pixels (1 is no blur), then enlarge it linearly to ``size``, all in integers."""
    soft = cv2.GaussianBlur(image, (taps, taps), 0)
    return cv2.resize(soft, size[::-1], interpolation=cv2.INTER_LINEAR_EXACT).astype(np.uint8, copy=False)


def _background(rng: Rng, size: Size, scale: int, hard: int) -> U8:
    """Draw a background image H×W×3: gentle gradients, clouds, and soft textured patches without an outline."""
    base = _int(rng, 60, 180) + _ints(rng, -28, 29, 3)
    half = (size[0] + 1) // 2, (size[1] + 1) // 2  # smooth clouds need only half the resolution
    wide, fine = 50 + (40 * hard >> 8), 16 + (60 * hard >> 8)
    clouds = _clouds(rng, half, 3, 3) * wide + _clouds(rng, half, 9, 3) * fine >> 8
    image = _enlarge(np.clip(clouds + base - (wide + fine) // 2, 0, 255).astype(np.uint8), size, 1)
    for _ in range(2 + (3 * hard >> 8)):
        cy, cx = _int(rng, 0, size[0]), _int(rng, 0, size[1])
        radius = max(4, scale * _int(rng, 40, 90) >> 8)
        rows, cols = slice(max(0, cy - radius), cy + radius), slice(max(0, cx - radius), cx + radius)
        y = np.arange(size[0], dtype=np.int32)[rows, None] - cy
        x = np.arange(size[1], dtype=np.int32)[None, cols] - cx
        alpha = np.maximum(255 - 255 * (y * y + x * x) // (radius * radius), 0) * (120 + (100 * hard >> 8)) >> 8
        tone = _texture(rng, _CLUTTER[_int(rng, 0, 3)], y, x, max(4, scale * _int(rng, 12, 26) >> 8), radius)
        colour = base + ((np.array(CLASSES[_int(rng, 1, len(CLASSES))][1]) - base) * (20 + (60 * hard >> 8)) >> 8)
        swing = _int(rng, 16, 28) + (12 * hard >> 8) + _ints(rng, -8, 9, 3)
        _lay(image[rows, cols], tone, colour.astype(np.int32), swing, alpha.astype(np.uint8))
    return image


def _place(rng: Rng, size: Size, scale: int, objects: int) -> list[_Thing]:
    """Choose the objects of a scene, back to front; each takes the emptiest of three spots or touches another."""
    things: list[_Thing] = []
    crowd = min(320, math.isqrt(6 * 65536 // objects))  # more objects are smaller, so that background remains
    for _ in range(objects + _int(rng, -(objects // 3), objects // 3 + 1)):
        partner = things[_int(rng, 0, len(things))] if things and _int(rng, 0, 5) < 2 else None
        kind = partner.kind if partner is not None and _int(rng, 0, 3) == 0 else _int(rng, 1, len(CLASSES))
        radius = max(4, scale * _int(rng, *_REACH[kind]) * crowd >> 16)
        spots = [divmod(int(place), size[1]) for place in _ints(rng, 0, size[0] * size[1], 3)]
        cy, cx = max(spots, key=lambda s: min(((s[0] - t.cy) ** 2 + (s[1] - t.cx) ** 2 for t in things), default=0))
        if partner is not None:
            gap = _ints(rng, 13, 17, 1) * (radius + partner.radius)  # 1/16 pixel; the two overlap a little or touch
            dx, dy = (int(v) >> 4 for v in _polar(gap, _ints(rng, 0, _TURN, 1))[0])
            if 0 <= partner.cy + dy < size[0] and 0 <= partner.cx + dx < size[1]:
                cy, cx = partner.cy + dy, partner.cx + dx
        things.append(_Thing(kind, cy, cx, radius))
    # Small and thin objects mostly lie on top, because a large object would hide them completely.
    return sorted(things, key=lambda t: t.kind in _THIN and _int(rng, 0, 5) > 0)


def _void(mask: U8, edged: U8, width: int) -> None:
    """Set pixels within ``width`` of a label change next to an ``edged`` object to VOID; 0 changes nothing."""
    kernel = np.ones((2 * width + 1, 2 * width + 1), dtype=np.uint8)
    border = (cv2.dilate(mask, kernel) != cv2.erode(mask, kernel)) & (cv2.dilate(edged, kernel) > 0)
    # A line of two pixels would become all void, so thin objects keep their label and only their border turns void.
    mask[border & (mask != WIRE) & (mask != DOTS)] = VOID


def _expose(rng: Rng, image: U8, hard: int) -> U8:
    """Add uneven light and sensor noise, equal in all channels except for a little colour in the noise."""
    rows, cols = image.shape[:2]
    depth = 15 + (30 * hard >> 8)
    gain = (128 - depth // 2 + (_clouds(rng, (rows, cols), 2, 1) * depth >> 8)).astype(np.uint16)
    lit = image * cv2.merge([gain] * 3).astype(np.uint16, copy=False) >> 7
    raw = np.frombuffer(rng.bytes(5 * rows * cols), dtype=np.uint8).astype(np.int16)
    pair, tint = raw[: 2 * rows * cols].reshape(2, rows, cols), raw[2 * rows * cols :].reshape(image.shape)
    grey = cv2.merge([2 * (pair[0] + pair[1]) - (2 * 255 + 128)] * 3)
    noise = (grey + tint).astype(np.int16, copy=False) * np.int16(5 + (23 * hard >> 8))  # roughly bell-shaped
    return np.clip(lit.astype(np.int16) + (noise >> 8), 0, 255).astype(np.uint8)


def _check(seed: int, index: int, size: Size, difficulty: float, objects: int, void_width: int) -> None:
    """Raise ValueError for the first parameter that is out of range."""

    def whole(value: object, low: int, high: int) -> bool:
        return isinstance(value, (int, np.integer)) and bool(low <= value <= high)

    for good, rule, value in (
        (whole(seed, 0, (1 << 32) - 1), "seed must be an integer from 0 to 2**32 - 1", seed),
        (whole(index, 0, (1 << 32) - 1), "index must be an integer from 0 to 2**32 - 1", index),
        ([whole(n, 16, 4096) for n in size] == [True] * 2, "size must be (height, width) from 16 to 4096 pixels", size),
        (0.0 <= difficulty <= 1.0, "difficulty must lie between 0 and 1", difficulty),
        (whole(objects, 1, 4096), "objects must be an integer from 1 to 4096", objects),
        (whole(void_width, 0, 64), "void_width must be an integer from 0 (no void border) to 64 pixels", void_width),
    ):
        if not good:
            raise ValueError(f"{rule}, got {value!r}")


def draw_scene(
    seed: int, index: int, size: Size = (96, 128), difficulty: float = 0.5, objects: int = 6, void_width: int = 1
) -> tuple[U8, U8]:
    """Draw one scene; the same arguments give the same bytes on every machine.

    Args:
        seed: Seed of a stream of scenes, 0 to 2**32 - 1; each split (training, validation, test) needs its own.
        index: Index of the scene in its stream, 0 to 2**32 - 1.
        size: Height and width in pixels, each 16 to 4096; objects grow with the scene.
        difficulty: 0 (distinct colours, little noise) to 1 (overlapping colours, noise, blurred edges, odd textures).
        objects: Mean number of objects, from 1 to 4096; the more objects, the smaller each is.
        void_width: Pixels of VOID on both sides of the outlines of about half the objects, 0 for none; wires and dots
            themselves never become void.

    Returns:
        The image, uint8 H×W×3 (RGB), and the mask, uint8 H×W, with labels 0 to ``len(CLASSES) - 1`` or VOID.

    Raises:
        ValueError: If a parameter is out of range; the message names the parameter.
    """
    image, labels, _, _ = _draw(seed, index, size, difficulty, objects, void_width)
    mask = labels & np.uint8(_EDGED - 1)
    _void(mask, labels // np.uint8(_EDGED), int(void_width))
    return image, mask


def draw_objects(
    seed: int, index: int, size: Size = (96, 128), difficulty: float = 0.5, objects: int = 6
) -> tuple[U8, I32, list[int]]:
    """Draw the scene of :func:`draw_scene` as a map of its objects and their classes.

    Args:
        seed: The seed, as in :func:`draw_scene`.
        index: The index, as in :func:`draw_scene`.
        size: The size, as in :func:`draw_scene`.
        difficulty: The difficulty, as in :func:`draw_scene`.
        objects: The mean number of objects, as in :func:`draw_scene`.

    Returns:
        The image, uint8 H×W×3; a map, int32 H×W, in which object k has the value k + 1 and 0 is background; and the
        class of each object, 1 to ``len(CLASSES) - 1``. An object that is covered by others has no pixel.

    Raises:
        ValueError: If a parameter is out of range; the message names the parameter.
    """
    image, _, ids, kinds = _draw(seed, index, size, difficulty, objects, 0)
    return image, ids, kinds


def _draw(
    seed: int, index: int, size: Size, difficulty: float, objects: int, void_width: int
) -> tuple[U8, U8, I32, list[int]]:
    """Draw a scene: its image, labels (plus ``_EDGED`` on objects with a void border), object map and classes."""
    _check(seed, index, size, difficulty, objects, void_width)
    rng = np.random.RandomState(np.array([seed, index], dtype=np.uint32))
    size, hard = (int(size[0]), int(size[1])), round(float(difficulty) * 256)
    # The unit of all lengths is the side of a square of the same area, but less in a narrow strip.
    scale = min(math.isqrt(size[0] * size[1]), 2 * min(size))
    image, labels = _background(rng, size, scale, hard), np.zeros(size, dtype=np.uint8)
    ids = np.zeros(size, dtype=np.int32)
    things = _place(rng, size, scale, int(objects))
    for number, thing in enumerate(things, start=1):
        cover, rows, cols = _paint(rng, image, labels, thing, scale, hard)
        np.copyto(ids[rows, cols], np.int32(number), where=cover > 0)
    return _expose(rng, image, hard), labels, ids, [thing.kind for thing in things]
