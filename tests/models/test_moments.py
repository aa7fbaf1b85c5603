from __future__ import annotations

import inspect
import wave
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from nemo_mm_rank.errors import EmbeddingError, ModelError
from nemo_mm_rank.media.segment import Audio, Image, Video
from nemo_mm_rank.models import loader
from nemo_mm_rank.models.base import Grounded, Grounder, fulfil
from nemo_mm_rank.models.grounders import MomentGrounder

RATE = 8_000


class Levels:
    """Retrieves what is loud, quiet or green: made like lighthouse's predictors."""

    def __init__(self, ckpt_path: str, device: str, feature_name: str) -> None:
        assert Path(ckpt_path).is_file()
        self.device, self.feature_name = device, feature_name
        self.encoded = 0

    def encode_audio(self, audio_path: str) -> dict[str, Any]:
        self.encoded += 1
        with wave.open(audio_path) as file:
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32767
            rate = file.getframerate()
        return {"levels": np.abs(samples[: len(samples) // rate * rate].reshape(-1, rate)).max(axis=1)}

    def encode_video(self, video_path: str) -> dict[str, Any]:
        self.encoded += 1
        with av.open(video_path) as container:
            frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
        return {"green": [time for time, frame in frames if (frame == (0, 255, 0)).all()]}

    def predict(self, query: str, inputs: dict[str, Any]) -> dict[str, Any] | None:
        if query == "nothing":
            return None
        if query == "green":
            found = [[time, time + 1, 0.9] for time in inputs["green"]]
        else:
            wanted = inputs["levels"] if query == "loud" else 1 - inputs["levels"]
            found = [[second, second + 1, float(level)] for second, level in enumerate(wanted)]
        return {"query": query, "pred_relevant_windows": [*found, [-3.0, 99.0, 0.6], [2.0, 2.0, 1.0]]}


@pytest.fixture
def weights(tmp_path: Path) -> str:
    (tmp_path / "best.ckpt").write_bytes(b"weights")
    return str(tmp_path / "best.ckpt")


def grounder(weights: str, modality: str = "audio", **changes: Any) -> MomentGrounder:
    own = {"ckpt_path": weights, "feature_name": "clip"}
    arguments = {"predictor": f"{__name__}:Levels", "arguments": own, "modality": modality, "allow_pickle": True}
    loaded: MomentGrounder = loader.load("moments", "moments", {**arguments, **changes})
    return loaded


def ok(result: object) -> Grounded:
    assert isinstance(result, Grounded), result
    return result


def recording(start: float = 0.0) -> Audio:
    samples = np.repeat(np.array([0.1, 0.9, 0.2, 0.8], dtype=np.float32), RATE)
    return Audio("levels", samples, RATE, start)


def test_moments_of_a_recording(weights: str) -> None:
    asked = grounder(weights, threshold=0.7)
    loud, both, nothing = asked.ground(
        [recording(), recording(5), recording()], [["loud"], ["quiet", "loud"], []], "audio"
    )
    assert ok(loud).found
    assert ok(loud).spans.tolist() == [[1, 2], [3, 4]]
    assert ok(loud).scores[:, 0].tolist() == pytest.approx([0.9, 0.8], abs=1e-4)
    assert ok(both).spans.tolist() == [[5, 6], [7, 8], [6, 7], [8, 9]]
    assert ok(both).scores.isnan().tolist() == [[False, True], [False, True], [True, False], [True, False]]
    assert (ok(nothing).spans.shape, ok(nothing).scores.shape) == ((0, 2), (0, 0))
    assert asked._retriever.encoded == 3  # type: ignore[attr-defined]
    assert ok(asked.ground([recording()], [["nothing"]], "audio")[0]).spans.shape == (0, 2)


def test_windows_lie_within_the_recording(weights: str) -> None:
    found = ok(grounder(weights, threshold=0.5).ground([recording(2)], [["loud"]], "audio")[0])
    assert found.spans.tolist() == [[3, 4], [5, 6], [2, 6]]


def test_moments_of_a_video(weights: str) -> None:
    frames = np.zeros((6, 20, 30, 3), dtype=np.uint8)
    frames[[1, 4]] = (0, 255, 0)
    video = Video("v", frames, np.arange(0.5, 6), 6.0)
    found = ok(grounder(weights, "video", threshold=0.7).ground([video], [["green"]], "video")[0])
    assert found.spans.numpy() == pytest.approx(np.array([[1, 2], [4, 5]]), abs=0.01)


def test_what_cannot_be_is_refused(weights: str) -> None:
    asked = grounder(weights, max_seconds=3)
    fulfil("moments", asked, Grounder)
    error = asked.ground([recording()], [["loud"]], "audio")[0]
    assert isinstance(error, EmbeddingError)
    assert str(error) == "4 s are more than moments takes (3)"
    with pytest.raises(ModelError, match="takes audio, not video"):
        asked.ground([], [], "video")
    with pytest.raises(ModelError, match="expected, not Image"):
        asked.ground([Image("i", None)], [["loud"]], "audio")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="moments: ckpt_path is a pickle, which can run code"):
        grounder(weights, allow_pickle=False)
    with pytest.raises(ModelError, match="modality is audio or video, not 'vidio'; did you mean 'video'"):
        grounder(weights, "vidio")
    with pytest.raises(ModelError, match=r"Silent has no encode_audio\(\)"):
        MomentGrounder("tests.models.test_moments:Silent", {}, "audio")


class Silent:
    def __init__(self, device: str) -> None:
        self.device = device


def test_the_revision_is_that_of_the_weights(weights: str) -> None:
    before = grounder(weights).revision
    loader.release()
    assert grounder(weights).revision == before
    Path(weights).write_bytes(b"others")
    loader.release()
    assert grounder(weights).revision != before


def test_lighthouse_has_the_interface() -> None:
    models = pytest.importorskip("lighthouse.models", reason="lighthouse is not installed")
    for name in ("CGDETRPredictor", "QDDETRPredictor"):
        predictor = getattr(models, name)
        assert list(inspect.signature(predictor.predict).parameters)[1:3] == ["query", "inputs"]
        for method in (predictor.encode_video, predictor.encode_audio):
            assert len(inspect.signature(method).parameters) == 2
        assert {"device", "feature_name"} <= set(inspect.signature(predictor).parameters)
