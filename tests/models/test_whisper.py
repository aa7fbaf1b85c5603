from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nemo_mm_rank.config import ModelSpec
from nemo_mm_rank.errors import EmbeddingError, ModelError
from nemo_mm_rank.media.segment import Audio
from nemo_mm_rank.models import loader
from nemo_mm_rank.models.expert import load_describer
from nemo_mm_rank.models.speech import WhisperDescriber, windows
from tests.models import tiny_writers

transformers: Any = pytest.importorskip("transformers", reason="needs the extra 'models'")

RATE = 16_000
RANDOM = np.random.default_rng(0)


def sound(samples: int, rate: int = RATE) -> Audio:
    return Audio(f"{samples} {rate}", RANDOM.uniform(-0.5, 0.5, samples).astype(np.float32), rate)


ITEMS = [sound(9_000), sound(16_000), sound(40_000), sound(300), sound(8_000, 8_000), sound(16_001)]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_writers.whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_writers.whisper(tmp_path_factory.mktemp("english"), multilingual=False)


def describer(folder: Path, **changes: Any) -> WhisperDescriber:
    loaded: WhisperDescriber = loader.load("speech", "whisper", {"path": str(folder), **changes})
    return loaded


def by_the_library(folder: Path, heard: list[np.ndarray[Any, Any]], **settings: Any) -> list[str]:
    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
    processor = transformers.WhisperProcessor.from_pretrained(folder)
    # By its settings: of arguments transformers 4 forgets some on the way.
    model.generation_config.update(do_sample=False, temperature=None)
    texts = []
    for samples in heard:
        features = processor(samples, sampling_rate=RATE, return_tensors="pt").input_features
        tokens = model.generate(features, max_new_tokens=16, **settings)
        texts += processor.batch_decode(tokens, skip_special_tokens=True)
    return [text.strip() for text in texts]


@pytest.mark.parametrize(
    "settings", [{"task": "transcribe"}, {"language": "de"}, {"language": "en", "task": "translate"}], ids=str
)
def test_what_is_said_is_what_the_library_understands(folder: Path, settings: dict[str, Any]) -> None:
    result = describer(folder, **settings).describe(ITEMS[:2], "audio")
    assert not result.errors
    assert result.texts == by_the_library(folder, [item.samples for item in ITEMS[:2]], **settings)
    assert len(set(result.texts)) == 2


def test_a_model_of_one_language(english: Path) -> None:
    result = describer(english).describe(ITEMS[:2], "audio")
    assert result.texts == by_the_library(english, [item.samples for item in ITEMS[:2]])
    for settings in ({"language": "en"}, {"task": "translate"}):
        with pytest.raises(ModelError, match="knows one language only"):
            describer(english, **settings)


def test_a_long_recording_is_heard_to_its_end(folder: Path) -> None:
    long = ITEMS[2].samples.copy()
    long[15_000:15_500] = 0
    own = describer(folder, language="en")
    said = by_the_library(folder, windows(long, RATE, RATE // 10), language="en")
    assert len(said) == 3
    assert own.describe([Audio("long", long, RATE)], "audio").texts == [" ".join(said)]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_text_is_the_same_in_any_company(folder: Path, batch_size: int) -> None:
    asked = describer(folder, batch_size=batch_size)
    texts = describer(folder).describe(ITEMS, "audio").texts
    assert None not in texts
    assert asked.describe(ITEMS[::-1], "audio").texts == texts[::-1]
    for item, text in zip(ITEMS, texts, strict=True):
        assert asked.describe([item], "audio").texts == [text]


def test_by_its_short_name_beside_its_errors(folder: Path) -> None:
    models = {"speech": ModelSpec.model_validate({"class": "whisper", "path": str(folder), "language": "en"})}
    loaded = load_describer("speech", models)
    result = loaded.describe([ITEMS[0], sound(0), ITEMS[1]], "audio")
    assert list(result.errors) == [1]
    assert str(result.errors[1]) == "contains no samples"
    assert result.texts[::2] == by_the_library(folder, [item.samples for item in ITEMS[:2]], language="en")
    assert loaded.revision == loader.identities(models)["speech"]["revision"]


def test_where_nothing_is_understood_there_is_an_error(folder: Path) -> None:
    speechless = describer(folder, max_new_tokens=15)
    speechless._write._settings["suppress_tokens"] = list(range(256))
    result = speechless.describe(ITEMS[:1], "audio")
    loader.release()
    assert result.texts == [None]
    assert isinstance(result.errors[0], EmbeddingError)
    assert str(result.errors[0]) == "speech recognises no speech in it"


def test_what_cannot_listen_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not know the language 'fr'"):
        describer(folder, language="fr")
    with pytest.raises(ModelError, match="task is 'transcribe' or 'translate', not 'sing'"):
        describer(folder, task="sing")
    with pytest.raises(ModelError, match="takes audio, not image"):
        describer(folder).describe([], "image")
    with pytest.raises(ModelError, match="Qwen2AudioProcessor is not Whisper's"):
        describer(tiny_writers.qwen2_audio(tmp_path / "other"))
    torch.save({"weight": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model.bin is a pickle"):
        describer(tmp_path)


@given(st.integers(1, 3000), st.integers(60, 400), st.integers(0, 2**32 - 1))
def test_windows_are_the_recording(n: int, length: int, seed: int) -> None:
    samples = np.random.default_rng(seed).normal(size=n).astype(np.float32)
    found = windows(samples, length, 10)
    assert np.array_equal(np.concatenate(found), samples)
    assert all(1 <= len(one) <= length for one in found)
    assert all(len(one) >= length * 4 // 5 - 10 for one in found[:-1])


def test_windows_are_cut_where_it_is_quiet() -> None:
    samples = np.ones(300, dtype=np.float32)
    samples[110:120] = 0.1
    assert [len(one) for one in windows(samples, 120, 10)] == [115, 105, 80]
    samples[100:110] = 0
    assert [len(one) for one in windows(samples, 120, 10)] == [105, 105, 90]
