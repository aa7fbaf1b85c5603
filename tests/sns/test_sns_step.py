# ruff: noqa: RUF001 (full-width marks are meant)
from __future__ import annotations

import pickle
import re
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from PIL import Image as PILImage

from nemo_mm_rank.config import CLASSICAL_EXPERTS, CLASSICAL_MODELS, ExpertSpec, MediaSettings, ModelSpec, SNSSettings
from nemo_mm_rank.errors import EmbeddingError, MissingColumnError, PairError
from nemo_mm_rank.frames import to_table
from nemo_mm_rank.media.segment import Audio, Image, Item, Video
from nemo_mm_rank.models.base import Encoded, Grounded
from nemo_mm_rank.schema import MEDIA_ROOT
from nemo_mm_rank.sns.sides import Cut, Selector
from nemo_mm_rank.sns.step import SNSStep
from nemo_mm_rank.sns.trimming import media_side

COLOURS = ("red", "green", "blue", "black")
WORDS = ("dog", "cat", "market", "rain", "sort", "list", "tone", "silence", *COLOURS)


def word_vectors() -> dict[str, npt.NDArray[np.float32]]:
    """One axis a word; and four words for which the better halves of two sides do not fit each other best."""
    dim = len(WORDS) + 4
    vectors = dict(zip(WORDS, np.eye(dim, dtype=np.float32), strict=False))
    alpha, beta, c, d = np.eye(dim)[len(WORDS) :]
    gamma = 0.5 * alpha + 0.45 * beta
    gamma += np.sqrt(1 - gamma @ gamma) * c
    delta = 0.46 * alpha - 0.1 * beta
    delta -= gamma @ delta / gamma[-2] * c
    delta += np.sqrt(1 - delta @ delta) * d
    four = {"alpha": alpha, "beta": beta, "gamma": gamma, "delta": delta}
    return vectors | {word: vector.astype(np.float32) for word, vector in four.items()}


VECTORS = word_vectors()


class PlainSense:
    """Hears words, sees colours and tells tones from silence, all in one space."""

    name = "plain-sense"
    revision = "1"
    modalities = frozenset({"text", "code", "image", "audio", "video"})
    dim = len(VECTORS["dog"])

    def encode(self, items: Sequence[Item], modality: str) -> Encoded:
        vectors = torch.full((len(items), self.dim), float("nan"))
        errors: dict[int, PairError] = {}
        for row, item in enumerate(items):
            amounts = self.amounts(item)
            vector = sum(amount * VECTORS[word] for word, amount in amounts)
            if not amounts or not np.any(vector):
                errors[row] = EmbeddingError("nothing that it knows")
            else:
                vectors[row] = torch.from_numpy((vector / np.linalg.norm(vector)).astype(np.float32))
        return Encoded(vectors, errors)

    @staticmethod
    def amounts(item: Item) -> list[tuple[str, float]]:
        if isinstance(item, str):
            return [(word, 1.0) for word in re.findall(r"[a-z]+", item.lower()) if word in VECTORS]
        if isinstance(item, Audio):
            blocks = item.samples[: len(item.samples) // 800 * 800].reshape(-1, 800)
            loud = float((np.abs(blocks).max(axis=1) > 0.1).mean())
            return [("tone", loud), ("silence", 1 - loud)]
        assert isinstance(item, Image | Video)
        pixels = np.asarray(item.pixels)[None] if isinstance(item, Image) else item.frames
        brightest = np.where(pixels.max(axis=-1) < 100, 3, pixels.argmax(axis=-1))
        return [(colour, float((brightest == i).mean())) for i, colour in enumerate(COLOURS)]


EXPERT = ExpertSpec(name="sense", kind="end-to-end", encoder="sense")
MODELS = {"sense": ModelSpec.model_validate({"class": f"{__name__}:PlainSense"})}


def step(**settings: Any) -> SNSStep:
    # What the expected spans below were worked out with, whatever the defaults are.
    worked_out = {"mode": "bidirectional", "temperature": 0.1, "region_grid": 3}
    return SNSStep(SNSSettings.model_validate({**worked_out, **settings}), EXPERT, MODELS)


def frame(*pairs: tuple[str, str | None, str | None], root: Path | None = None) -> pd.DataFrame:
    columns = {
        "pair_id": [f"p{i}" for i in range(len(pairs))],
        "pool": ["test"] * len(pairs),
        "modality": [modality for modality, _, _ in pairs],
        "data": [data for _, data, _ in pairs],
        "annotation": [annotation for _, _, annotation in pairs],
    }
    made = pd.DataFrame(columns, dtype="string[pyarrow]")
    if root is not None:
        made[MEDIA_ROOT] = pd.array([str(root)] * len(pairs), dtype="string[pyarrow]")
    return made


def trim(sns: SNSStep, *pairs: tuple[str, str | None, str | None], root: Path | None = None) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = to_table(sns(frame(*pairs, root=root))).to_pylist()
    return rows


FOREIGN_DATA = ("text", "The dog runs. The market closed. The dog barks.", "A dog.")
FOREIGN_ANNOTATION = ("text", "The dog runs.", "Rain is coming. A dog!")
FOREIGN_BOTH = ("text", "The market closed. The dog runs.", "A dog! Rain is coming.")


def test_forward_cuts_the_foreign_sentence_of_the_data() -> None:
    (row,) = trim(step(mode="forward"), FOREIGN_DATA)
    assert row["sns_data_spans"] == [[0, 13], [33, 47]]
    assert row["sns_annotation_spans"] is None
    assert row["sns_reason"] == "forward: kept 2 of 3 sentences"
    assert row["sns_before"] == pytest.approx(2 / 5**0.5)
    assert row["sns_after"] == 1
    assert row["error"] is None


def test_backward_cuts_the_foreign_sentence_of_the_annotation() -> None:
    (row,) = trim(step(mode="backward"), FOREIGN_ANNOTATION)
    assert row["sns_data_spans"] is None
    assert row["sns_annotation_spans"] == [[16, 22]]
    assert row["sns_reason"] == "backward: kept 1 of 2 annotation sentences"
    assert row["sns_before"] == pytest.approx(0.5**0.5)
    assert row["sns_after"] == 1


def test_bidirectional_cuts_both() -> None:
    first, second, both = trim(step(), FOREIGN_DATA, FOREIGN_ANNOTATION, FOREIGN_BOTH)
    assert first["sns_reason"] == "forward: kept 2 of 3 sentences"
    assert second["sns_reason"] == "backward: kept 1 of 2 annotation sentences"
    assert both["sns_data_spans"] == [[19, 32]]
    assert both["sns_annotation_spans"] == [[0, 6]]
    assert both["sns_reason"] == "bidirectional: kept 1 of 2 sentences and 1 of 2 annotation sentences"
    assert both["sns_before"] == pytest.approx(0.5)
    assert both["sns_after"] == 1


def test_code_is_cut_in_blocks() -> None:
    code = "def a(list):\n    return sort(list)\n\nmarket = 1\nrain = 2\n"
    (row,) = trim(step(), ("code", code, "sort a list"))
    assert row["sns_data_spans"] == [[0, 34]]
    assert row["sns_reason"] == "forward: kept 1 of 2 blocks"


def test_both_halves_that_do_not_fit_each_other_fall_back_to_the_better_single_direction() -> None:
    settings = {"select": "threshold", "tau_forward": 0.47, "tau_backward": 0.47}
    (row,) = trim(step(**settings), ("text", "Alpha. Beta.", "Gamma. Delta."))
    joint = 0.5
    assert joint < row["sns_before"] < row["sns_after"]
    assert row["sns_reason"] == "bidirectional refused by the gate, kept forward: 1 of 2 sentences"
    assert row["sns_data_spans"] == [[0, 6]]
    assert row["sns_annotation_spans"] is None


def test_the_gate_keeps_the_original() -> None:
    strict = step(gate_ratio=1.2)
    kept, refused = trim(strict, FOREIGN_BOTH, FOREIGN_DATA)
    assert kept["sns_after"] == 1
    assert refused["sns_reason"] == "untrimmed: refused by the gate"
    assert refused["sns_data_spans"] is None
    assert refused["sns_after"] == refused["sns_before"] == pytest.approx(2 / 5**0.5)


def test_why_a_pair_stays_whole() -> None:
    pairs = [
        ("text", "The dog runs.", "A dog."),
        ("text", "The dog runs. The dog barks.", "A dog."),
        ("text", "The dog runs. It barks.", "Rain. Market."),
    ]
    rows = trim(step(select="threshold"), *pairs)
    assert [row["sns_reason"] for row in rows] == [
        "untrimmed: one segment",
        "untrimmed: data: every segment is relevant; annotation: one segment",
        "untrimmed: no segment is relevant",
    ]
    assert all(row["sns_data_spans"] is row["sns_annotation_spans"] is None for row in rows)
    assert [row["sns_after"] for row in rows] == [row["sns_before"] for row in rows] == [1, 1, 0]


def test_thresholds_are_per_modality() -> None:
    pairs = [("text", "Alpha. Beta.", "Gamma."), ("code", "alpha\n\nbeta", "Gamma.")]
    settings = {"mode": "forward", "select": "threshold", "gate_ratio": 0.0}
    assert [r["sns_reason"] for r in trim(step(**settings, tau_forward=0.47, tau={"code": 0.3}), *pairs)] == [
        "forward: kept 1 of 2 sentences",
        "untrimmed: every segment is relevant",
    ]


def test_mode_off_needs_no_model_and_leaves_everything() -> None:
    sns = SNSStep(SNSSettings(mode="off"), EXPERT, {"sense": ModelSpec.model_validate({"class": "no.such:Model"})})
    (row,) = trim(sns, FOREIGN_BOTH)
    assert row["sns_reason"] == "untrimmed: mode is off"
    assert row["sns_data_spans"] is row["sns_annotation_spans"] is row["sns_before"] is row["sns_after"] is None
    assert row["error"] is None


def test_a_space_without_text_leaves_the_modality_whole() -> None:
    sns = SNSStep(SNSSettings(mode="forward"), CLASSICAL_EXPERTS[1], CLASSICAL_MODELS)
    (row,) = trim(sns, ("image", "no-such-file.png", "A dog."))
    assert row["sns_reason"] == "untrimmed: expert features has no space for image and text"
    assert row["sns_before"] is row["error"] is None


def test_failures_are_quarantined_and_the_rest_is_unchanged() -> None:
    bad = [
        ("text", None, "A dog."),
        ("text", " \n", "A dog."),
        ("text", "The dog runs.", ""),
        ("text", "The dog runs.", "xyzzy"),
        ("text", "xyzzy. plugh.", "A dog."),
        ("text", "dog " * 60_000, "A dog."),
        ("smell", "dog", "A dog."),
        ("image", "missing.png", "A dog."),
        ("audio", "../x.wav", "A dog."),
    ]
    rows = trim(step(), FOREIGN_BOTH, *bad, FOREIGN_DATA, root=Path())
    assert [row["error"] and row["error"].split(":")[1].strip() for row in rows] == [
        None,
        "TextError",
        "TextError",
        "TextError",
        "EmbeddingError",
        "EmbeddingError",
        "TextError",
        "EmbeddingError",
        "MediaError",
        "MediaError",
        None,
    ]
    good = trim(step(), FOREIGN_BOTH, FOREIGN_DATA, root=Path())
    sns = [name for name in good[0] if name.startswith("sns_")]
    assert [{name: rows[i][name] for name in sns} for i in (0, 10)] == [
        {name: row[name] for name in sns} for row in good
    ]
    assert all(row[name] is None for row in rows[1:10] for name in sns)


def test_parts_without_a_vector_are_not_kept_and_do_no_harm() -> None:
    (row,) = trim(step(mode="forward"), ("text", "!!! The dog runs. Xyzzy. 🐕.", "A dog and a xyzzy."))
    assert row["sns_data_spans"] == [[4, 17]]
    assert row["sns_reason"] == "forward: kept 1 of 4 sentences"


@pytest.mark.parametrize(
    ("data", "annotation"),
    [
        ("الكلب. dog. القطة. market. ", "dog. הכלב רץ."),
        ("🐕🎉. A dog! 🎉\nmarket", "🐕 dog. 🎉🎉"),
        ("dog\r\n\r\nmarket\x85rain\u2028", "dog\n\n\nrain"),
        ("一只 dog。 market！", "dog"),
    ],
)
def test_spans_are_characters_of_any_script(data: str, annotation: str) -> None:
    (row,) = trim(step(gate_ratio=0.5), ("text", data, annotation))
    assert row["error"] is None
    for text, spans in ((data, row["sns_data_spans"]), (annotation, row["sns_annotation_spans"])):
        for start, end in spans or [[0, len(text)]]:
            kept = text[int(start) : int(end)]
            assert "dog" in kept or "rain" in kept
    assert row["sns_data_spans"] is not None


def test_a_megabyte_of_text_is_cut_in_bounded_parts() -> None:
    data = "The market closed. " * 40_000 + "The dog runs. " * 20_000
    annotation = "A dog. " * 100_000 + "Rain is coming. " * 20_000
    sns = step()
    sns.media = MediaSettings(max_text_chars=2_000_000)
    (row,) = trim(sns, ("text", data, annotation))
    assert row["error"] is None
    assert row["sns_reason"] == "bidirectional: kept 79 of 256 sentences and 192 of 256 annotation sentences"
    assert sum("market" in data[int(start) : int(end)] for start, end in row["sns_data_spans"]) <= 1
    assert not any("Rain" in annotation[int(start) : int(end)] for start, end in row["sns_annotation_spans"])
    assert row["sns_after"] > 0.99


def write_image(path: Path) -> None:
    pixels = np.zeros((90, 120, 3), dtype=np.uint8)
    pixels[:30, 80:] = (255, 0, 0)
    PILImage.fromarray(pixels).save(path)


def write_sound(path: Path, seconds: float, *tones: tuple[float, float]) -> None:
    times = np.arange(int(16_000 * seconds)) / 16_000
    heard = np.any([(times >= start) & (times < end) for start, end in tones], axis=0)
    samples = np.where(heard, 0.5 * np.sin(2 * np.pi * 440 * times), 0)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((samples * 32767).astype("<i2").tobytes())


def write_video(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(80):
            pixels = np.zeros((48, 64, 3), dtype=np.uint8)
            pixels[..., 0] = 255 if 40 <= i < 60 else 0
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("media")
    write_image(root / "square.png")
    write_sound(root / "tone.wav", 8, (4, 6))
    write_sound(root / "two.wav", 12, (1, 3), (8, 10))
    write_sound(root / "short.wav", 1.5, (0.5, 1))
    write_video(root / "flash.mp4")
    return root


SQUARE = ("image", "square.png", "A red square in the corner.")
TONE = ("audio", "tone.wav", "A tone.")
FLASH = ("video", "flash.mp4", "A red flash.")


def test_an_image_is_cut_to_the_planted_square(media: Path) -> None:
    (row,) = trim(step(padding=0), SQUARE, root=media)
    assert row["sns_data_spans"] == [[80, 0, 40, 30]]
    assert row["sns_reason"] == "forward: kept 1 of 14 regions"
    assert row["sns_before"] == pytest.approx(1 / 65**0.5)
    assert row["sns_after"] == 1
    (padded,) = trim(step(padding=0.05), SQUARE, root=media)
    assert padded["sns_data_spans"] == [[78, 0, 42, 32]]
    assert row["sns_before"] < padded["sns_after"] < 1


@pytest.mark.parametrize("pair", [TONE, FLASH])
def test_a_recording_is_cut_to_the_planted_window(media: Path, pair: tuple[str, str, str]) -> None:
    (row,) = trim(step(), pair, root=media)
    assert row["error"] is None
    assert row["sns_data_spans"] == [[4, 6]]
    assert row["sns_reason"] == "forward: kept 1 of 7 windows"
    assert row["sns_before"] == pytest.approx(0.25 / (0.25**2 + 0.75**2) ** 0.5, abs=0.02)
    assert row["sns_after"] == pytest.approx(1, abs=0.01)


def test_a_recording_keeps_no_more_windows_than_allowed_and_none_too_short(media: Path) -> None:
    pair = ("audio", "two.wav", "A tone.")
    threshold = {"mode": "forward", "select": "threshold", "tau_forward": 0.9}
    (both,) = trim(step(**threshold), pair, root=media)
    assert both["sns_data_spans"] == [[1, 3], [8, 10]]
    assert both["sns_reason"] == "forward: kept 2 of 11 windows"
    assert both["sns_after"] == 1
    (one,) = trim(step(**threshold, max_segments=1), pair, root=media)
    assert one["sns_data_spans"] == [[1, 3]]
    (runs,) = trim(step(**threshold, tau={"audio": 0.5}), pair, root=media)
    assert runs["sns_data_spans"] == [[0, 4], [7, 11]]
    (none,) = trim(step(**threshold, min_duration=2.5), pair, root=media)
    assert none["sns_reason"] == "untrimmed: no segment is relevant"


def test_a_recording_too_short_for_two_windows_is_left_whole(media: Path) -> None:
    (row,) = trim(step(), ("audio", "short.wav", "A tone."), root=media)
    assert row["sns_reason"] == "untrimmed: one segment"
    assert row["sns_after"] == row["sns_before"] == pytest.approx(1 / 5**0.5)


def test_backward_judges_sentences_by_the_whole_media(media: Path) -> None:
    (row,) = trim(step(mode="backward"), ("image", "square.png", "Black and red. Rain is coming."), root=media)
    assert row["sns_data_spans"] is None
    assert row["sns_annotation_spans"] == [[0, 14]]
    assert row["sns_reason"] == "backward: kept 1 of 2 annotation sentences"


def test_a_phrase_without_a_vector_does_no_harm(media: Path) -> None:
    (row,) = trim(step(padding=0), ("image", "square.png", "A red xyzzy, plugh."), root=media)
    assert row["sns_data_spans"] == [[80, 0, 40, 30]]


class Unsure:
    """Finds nothing in the first item, and cannot judge the parts of the second."""

    name = "unsure"
    revision = "1"
    modalities = frozenset({"image"})

    def ground(
        self, items: Sequence[Item], phrases: Sequence[Sequence[str]], modality: str
    ) -> list[Grounded | PairError]:
        boxes = torch.tensor([[0.0, 0.0, 5.0, 5.0], [5.0, 5.0, 5.0, 5.0]], dtype=torch.float64)
        return [
            EmbeddingError("nothing to compare"),
            Grounded(boxes, torch.full((2, 1), float("nan"))),
            Grounded(boxes, torch.tensor([[0.9], [float("nan")]])),
        ]


def test_what_a_grounder_cannot_judge_stays_whole_and_says_so() -> None:
    images = [Image(f"key{i}", PILImage.new("RGB", (10, 10), "red")) for i in range(3)]
    select = Selector(SNSSettings(padding=0), 0.0)
    side = media_side(iter(images), [["red"]] * 3, "image", PlainSense(), Unsure(), select)
    assert side.cuts == [
        Cut(None, "EmbeddingError: nothing to compare"),
        Cut(None, "no segment is relevant"),
        Cut([[0, 0, 5, 5]], "1 of 2 regions"),
    ]
    assert np.isnan(side.trimmed).all(axis=1).tolist() == [True, True, False]


def columns(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name.startswith("sns_") or name == "error"} for row in table]


def test_a_pair_is_trimmed_the_same_alone_and_in_any_company(media: Path) -> None:
    pairs = [
        FOREIGN_DATA,
        SQUARE,
        TONE,
        FOREIGN_BOTH,
        FLASH,
        ("audio", "two.wav", "A tone. A dog."),
        FOREIGN_ANNOTATION,
    ]
    pairs += [("image", "square.png", "Red. A black cat."), ("code", "sort(list)\n\nrain()", "sort a list")]
    classical = SNSStep(SNSSettings(mode="bidirectional", temperature=0.02), CLASSICAL_EXPERTS[0], CLASSICAL_MODELS)
    for sns in (step(), classical):
        together = columns(trim(sns, *pairs, root=media))
        alone = [columns(trim(sns, pair, root=media))[0] for pair in pairs]
        backwards = columns(trim(sns, *pairs[::-1], root=media))[::-1]
        assert together == alone == backwards
        assert all(row["error"] is None for row in together)


def test_the_users_rows_and_columns_survive(media: Path) -> None:
    given = frame(FOREIGN_DATA, SQUARE, root=media).assign(mine=[1, 2])
    given.index = pd.Index([7, 3])
    made = step()(given)
    assert list(made.columns[: len(given.columns)]) == list(given.columns)
    pd.testing.assert_frame_equal(made[list(given.columns)], given)
    assert list(step().meta(given).columns) == list(made.columns)


def test_a_step_is_told_apart_by_all_that_its_result_depends_on() -> None:
    assert step().identity() == step().identity()
    assert step().identity() != step(nucleus=0.8).identity()
    loaded = step()
    trim(loaded, FOREIGN_DATA)
    again = pickle.loads(pickle.dumps(loaded))
    assert "_expert" not in vars(again)
    assert trim(again, FOREIGN_DATA) == trim(loaded, FOREIGN_DATA)


def test_missing_columns_are_named_before_any_model_loads() -> None:
    with pytest.raises(MissingColumnError, match="sns: the frame has no column 'annotation'"):
        step()(frame(FOREIGN_DATA).drop(columns="annotation"))
