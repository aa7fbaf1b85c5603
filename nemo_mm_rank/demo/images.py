"""Images and videos of the demo pool: landscapes and coloured shapes, drawn, with captions that say what is drawn."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from random import Random
from typing import Any

import av
import numpy as np
from PIL import Image, ImageDraw

from nemo_mm_rank.arrays import Floats, Pixels
from nemo_mm_rank.demo.words import capital, caption

Colour = tuple[int, int, int]

WIDTH, HEIGHT = 160, 120
FRAMES, FRAMES_PER_SECOND = 24, 6

COLOURS: dict[str, Colour] = {
    "red": (205, 35, 40),
    "green": (40, 160, 60),
    "blue": (40, 70, 200),
    "yellow": (240, 210, 40),
    "orange": (240, 130, 30),
    "purple": (130, 50, 160),
    "pink": (240, 150, 180),
    "brown": (120, 75, 40),
    "black": (20, 20, 20),
    "white": (245, 245, 245),
    "grey": (130, 130, 130),
}

SKIES: dict[str, tuple[Colour, Colour]] = {
    "a clear blue sky": ((70, 130, 225), (180, 215, 250)),
    "an orange evening sky": ((110, 80, 140), (250, 150, 60)),
    "a pink morning sky": ((150, 150, 210), (250, 180, 190)),
    "a pale grey sky": ((150, 155, 160), (205, 208, 210)),
    "a dark night sky": ((8, 12, 40), (30, 40, 85)),
}
GROUNDS: dict[str, tuple[Colour, Colour]] = {
    "the calm blue water of the sea": ((40, 100, 170), (15, 50, 110)),
    "a field of green grass": ((90, 170, 70), (40, 110, 35)),
    "a beach of yellow sand": ((235, 210, 140), (200, 165, 95)),
    "a plain of white snow": ((235, 240, 248), (205, 215, 230)),
}
SIDES = {"on the left": 0.22, "in the middle": 0.5, "on the right": 0.78}


@dataclass(frozen=True)
class Landscape:
    """Ground under a sky, and what stands or moves there.

    Attributes:
        moving: what moves in a video of it: ``sun``, ``clouds`` or ``surface``.
    """

    sky: str
    ground: str
    sun: str | None
    clouds: int
    trees: str | None
    mountains: bool
    moving: str
    seed: int

    @classmethod
    def at_random(cls, random: Random) -> Landscape:
        """Make one up."""
        ground = random.choice(list(GROUNDS))
        return cls(
            sky=random.choice(list(SKIES)),
            ground=ground,
            sun=random.choice([*SIDES, *SIDES, None]),
            clouds=random.choice([0, 0, 2, 3]),
            trees=random.choice([*SIDES, None]) if "grass" in ground or "snow" in ground else None,
            mountains=random.random() < 0.3,
            moving=random.choice(["sun", "clouds", "surface"]),
            seed=random.randrange(2**32),
        )

    @property
    def _light(self) -> str:
        return "moon" if "night" in self.sky else "sun"

    def caption(self, random: Random) -> str:
        """Say what is there, in one to three sentences."""
        sentences = [caption(random, "landscape", ground=self.ground, sky=self.sky)]
        if self.sun:
            light = "white moon" if self._light == "moon" else "yellow sun"
            sentences.append(caption(random, "light", light=light, place=self.sun))
        if self.clouds:
            sentences.append(caption(random, "clouds"))
        if self.trees:
            sentences.append(caption(random, "trees", place=self.trees))
        if self.mountains:
            sentences.append("grey mountains rise in the distance.")
        return " ".join(map(capital, sentences[:3]))

    def video_caption(self, random: Random) -> str:
        """Say what is there and what moves."""
        first = {
            "sun": f"the {self._light} rises slowly over {self.ground}.",
            "clouds": f"white clouds drift to the right above {self.ground}.",
            "surface": f"{'waves roll over' if 'sea' in self.ground else 'wind moves across'} {self.ground}.",
        }[self.moving]
        return f"{capital(first)} {capital(caption(random, 'sky', sky=self.sky))}"

    def draw(self, time: float = 0.0) -> Pixels:
        """Draw it ``time`` (0 to 1) into its video."""
        horizon = int(HEIGHT * 0.58)
        pixels = np.empty((HEIGHT, WIDTH, 3))
        pixels[:horizon] = _gradient(SKIES[self.sky], horizon)
        pixels[horizon:] = _gradient(GROUNDS[self.ground], HEIGHT - horizon)
        grain = np.random.default_rng(self.seed).normal(0, 9, (HEIGHT - horizon, WIDTH, 1))
        pixels[horizon:] += np.roll(grain, round(time * 30) if self.moving == "surface" else 0, axis=1)
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        pen = ImageDraw.Draw(image)
        if self.mountains:
            for x in (20, 75, 125):
                pen.polygon([(x - 40, horizon), (x, horizon - 32), (x + 40, horizon)], fill=(115, 118, 128))
        if self.sun or self.moving == "sun":
            height = 0.75 - 0.55 * time if self.moving == "sun" else 0.45
            x, y = int(SIDES[self.sun or "in the middle"] * WIDTH), int(height * horizon)
            colour = (245, 245, 235) if self._light == "moon" else (255, 225, 70)
            pen.ellipse([x - 11, y - 11, x + 11, y + 11], fill=colour)
        for cloud in range(self.clouds or 2 * (self.moving == "clouds")):
            shift = time * 70 if self.moving == "clouds" else 0
            x, y = int((25 + 55 * cloud + shift) % (WIDTH + 30)) - 15, 14 + 9 * (cloud % 2)
            for offset in (-12, 0, 12):
                pen.ellipse([x + offset - 11, y - 6, x + offset + 11, y + 6], fill=(248, 248, 250))
        if self.trees:
            for offset in (-16, 0, 15):
                x = int(SIDES[self.trees] * WIDTH) + offset
                pen.polygon([(x - 9, horizon + 16), (x, horizon - 20), (x + 9, horizon + 16)], fill=(20, 75, 35))
        return np.asarray(image)


PLACES = {
    "upper left corner": (0.22, 0.25),
    "upper right corner": (0.78, 0.25),
    "lower left corner": (0.22, 0.75),
    "lower right corner": (0.78, 0.75),
    "center": (0.5, 0.5),
}
MOTIONS = {"from left to right": (1, 0), "from right to left": (-1, 0), "upwards": (0, -1), "downwards": (0, 1)}


@dataclass(frozen=True)
class Shapes:
    """One or two plain shapes on a plain background: ``(size, colour, shape, place)`` each."""

    background: str
    shapes: tuple[tuple[str, str, str, str], ...]
    motion: str
    fast: bool

    @classmethod
    def at_random(cls, random: Random) -> Shapes:
        """Make some up, of colours and places that differ."""
        background = random.choice(["grey", "pink", "purple", "orange", "brown"])
        n = random.choice([1, 2])
        colours = random.sample([name for name in COLOURS if name != background], n)
        places = random.sample(list(PLACES), n)
        shapes = tuple(
            (random.choice(["small", "large"]), colour, random.choice(["circle", "square", "triangle"]), place)
            for colour, place in zip(colours, places, strict=True)
        )
        return cls(background, shapes, random.choice(list(MOTIONS)), random.random() < 0.5)

    def caption(self, random: Random) -> str:
        """Say what is where."""
        size, colour, shape, place = self.shapes[0]
        background = self.background
        first = caption(random, "shape", size=size, colour=colour, shape=shape, place=place, background=background)
        rest = [f"A {size} {colour} {shape} is in the {place}." for size, colour, shape, place in self.shapes[1:]]
        return " ".join([first, *rest])

    def video_caption(self, random: Random) -> str:
        """Say what moves, and where to."""
        _, colour, shape, _ = self.shapes[0]
        how, background = "quickly" if self.fast else "slowly", self.background
        return caption(random, "moving", colour=colour, shape=shape, how=how, motion=self.motion, background=background)

    def draw(self, time: float | None = None) -> Pixels:
        """Draw all shapes where they belong, or the first alone ``time`` (0 to 1) into its video."""
        image = Image.new("RGB", (WIDTH, HEIGHT), COLOURS[self.background])
        pen = ImageDraw.Draw(image)
        for size, colour, shape, place in self.shapes if time is None else self.shapes[:1]:
            x, y = PLACES[place]
            if time is not None:
                along = (time * (2 if self.fast else 0.8)) % 1 - 0.5
                x, y = (0.5 + 0.8 * along * step for step in MOTIONS[self.motion])
            radius = 26 if size == "large" else 14
            _pen_shape(pen, shape, int(x * WIDTH), int(y * HEIGHT), radius, COLOURS[colour])
        return np.asarray(image)


def _pen_shape(pen: ImageDraw.ImageDraw, shape: str, x: int, y: int, radius: int, colour: Colour) -> None:
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    else:
        pen.polygon([(x - radius, y + radius), (x, y - radius), (x + radius, y + radius)], fill=colour)


def _gradient(colours: tuple[Colour, Colour], rows: int) -> Floats:
    share = np.linspace(0, 1, rows)[:, None, None]
    top, bottom = (np.array(colour, dtype=float) for colour in colours)
    return top * (1 - share) + bottom * share


def jpeg(pixels: Pixels) -> bytes:
    """Return an image as a JPEG file."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=85)
    return file.getvalue()


def video(scene: Landscape | Shapes) -> bytes:
    """Return a video of it as an MP4 file, the same bytes each time."""
    return mp4((scene.draw(number / FRAMES) for number in range(FRAMES)), FRAMES_PER_SECOND)


def mp4(frames: Iterable[Pixels], rate: int) -> bytes:
    """Return frames of one size, ``(h, w, 3)`` with even sides, as an MP4 file, the same bytes each time."""
    file = BytesIO()
    with av.open(file, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream: Any = None
        for pixels in frames:
            if stream is None:
                stream = container.add_stream("mpeg4", rate=rate)
                stream.height, stream.width = pixels.shape[:2]
                stream.pix_fmt, stream.bit_rate = "yuv420p", 200_000
                stream.codec_context.thread_count = 1
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()
