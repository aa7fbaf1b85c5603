"""CLIP, SigLIP, SigLIP 2, CLAP and OpenCLIP through the loader, against the libraries' own forward pass."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from nemo_mm_rank.config import ModelSpec, parse
from nemo_mm_rank.errors import ConfigError, EmbeddingError, ModelError
from nemo_mm_rank.media.segment import Audio, Item, Video
from nemo_mm_rank.models import loader
from nemo_mm_rank.models.base import Encoded, Encoder
from nemo_mm_rank.models.expert import CachedEncoder
from tests.models import tiny_encoders as tiny
from tests.models.tiny_library import make_processor, version

transformers = pytest.importorskip("transformers", reason="needs the extra 'models'")
open_clip = pytest.importorskip("open_clip", reason="needs the extra 'models'")


@dataclass(frozen=True)
class Kind:
    """A kind of model: how it is made, named, and called by those who published it."""

    build: Callable[[Path], Path]
    short: str
    media: str
    items: Sequence[Item]
    library: Callable[[Path, Sequence[Any]], tuple[torch.Tensor, torch.Tensor]]


def vectors_of(features: Any) -> torch.Tensor:
    """What a tower says: by transformers 4 alone, by 5 among all that it puts out."""
    found: torch.Tensor = getattr(features, "pooler_output", features)
    return found


def of_transformers(folder: Path, pictures: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    model, processor = (
        transformers.AutoModel.from_pretrained(folder).eval(),
        make_processor(folder),
    )
    siglip = model.config.model_type.startswith("siglip")
    limit = min(processor.tokenizer.model_max_length, model.config.text_config.max_position_embeddings)
    texts = processor(
        text=tiny.TEXTS,
        padding="max_length" if siglip else True,
        max_length=limit,
        truncation=True,
        return_tensors="pt",
    )
    with torch.inference_mode():
        words = vectors_of(model.get_text_features(**texts))
        if isinstance(pictures[0], Audio):
            media = processor(audio=[one.samples for one in pictures], sampling_rate=16_000, return_tensors="pt")
            seen = vectors_of(model.get_audio_features(**media))
        elif isinstance(pictures[0], Video):
            media = processor.image_processor([list(one.frames) for one in pictures], return_tensors="pt")
            seen = vectors_of(model.get_video_features(**media))
        else:
            media = processor(images=[one.pixels for one in pictures], return_tensors="pt")
            seen = vectors_of(model.get_image_features(**media))
    return F.normalize(words, dim=1), F.normalize(seen, dim=1)


def of_open_clip(folder: Path, pictures: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    with torch.inference_mode():
        words = model.eval().encode_text(tokenizer(tiny.TEXTS), normalize=True)
        seen = model.encode_image(torch.stack([transform(one.pixels) for one in pictures]), normalize=True)
    return words, seen


SOUNDS = [tiny.sound(seed, seconds) for seed, seconds in enumerate([0.1, 0.5, 1, 0.05, 0.9, 0.2, 0.3, 0.31, 1, 0.77])]
KINDS = {
    "clip": Kind(tiny.clip, "clip", "image", tiny.images(), of_transformers),
    "siglip": Kind(tiny.siglip, "clip", "image", tiny.images(), of_transformers),
    "siglip2": Kind(tiny.siglip2, "clip", "image", tiny.images(), of_transformers),
    "x_clip": Kind(tiny.x_clip, "x-clip", "video", [tiny.video(seed, 4) for seed in range(6)], of_transformers),
    "clap": Kind(tiny.clap, "clap", "audio", SOUNDS, of_transformers),
    "open_clip": Kind(tiny.open_clip, "open-clip", "image", tiny.images(), of_open_clip),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: kind.build(root / name) for name, kind in KINDS.items()}


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(autouse=True, scope="module")
def _forget() -> Iterator[None]:
    yield
    loader.release()


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("a folder is all that is needed")

    monkeypatch.setattr("socket.socket.connect", refuse)


def load(kind: str, folder: Path, **arguments: Any) -> Any:
    if kind == "x_clip" and version() < (5, 0):
        pytest.skip("X-CLIP needs transformers 5: the library's own code for it fails before")
    return loader.load(kind, KINDS[kind].short, {"path": str(folder), **arguments})


def both(encoder: Encoder, kind: str) -> tuple[Encoded, Encoded]:
    return encoder.encode(tiny.TEXTS, "text"), encoder.encode(KINDS[kind].items, KINDS[kind].media)


def test_vectors_are_those_of_the_library(kind: str, folders: dict[str, Path]) -> None:
    encoder = load(kind, folders[kind])
    ours = both(encoder, kind)
    for encoded, library in zip(ours, KINDS[kind].library(folders[kind], KINDS[kind].items), strict=True):
        assert not encoded.errors
        assert encoded.vectors.dtype == torch.float32
        assert encoded.vectors.shape[1] == encoder.dim
        torch.testing.assert_close(encoded.vectors, library, atol=1e-5, rtol=0)
        assert len({row.numpy().tobytes() for row in encoded.vectors}) == len(library)


def test_a_vector_is_the_same_bytes_in_any_batch(kind: str, folders: dict[str, Path]) -> None:
    encoder = load(kind, folders[kind])
    texts, media = both(encoder, kind)
    items, modality = list(KINDS[kind].items), KINDS[kind].media
    for row in (0, 3, len(items) - 1):
        assert torch.equal(encoder.encode([items[row]], modality).vectors[0], media.vectors[row])
    assert torch.equal(encoder.encode(items[::-1], modality).vectors.flip(0), media.vectors)
    assert torch.equal(encoder.encode(items[4:5] * 17, modality).vectors, media.vectors[4].expand(17, -1))
    for row in range(len(tiny.TEXTS)):
        assert torch.equal(encoder.encode([tiny.TEXTS[row]], "text").vectors[0], texts.vectors[row])
    assert torch.equal(encoder.encode(tiny.TEXTS[::-1], "text").vectors.flip(0), texts.vectors)


def test_loaded_again_it_is_the_same_to_the_bit(kind: str, folders: dict[str, Path]) -> None:
    first = load(kind, folders[kind])
    before = both(first, kind)
    loader.release()
    again = load(kind, folders[kind])
    assert again is not first
    for one, other in zip(before, both(again, kind), strict=True):
        assert torch.equal(one.vectors, other.vectors)


def test_another_batch_size_moves_no_more_than_the_last_bits(kind: str, folders: dict[str, Path]) -> None:
    default, small = load(kind, folders[kind]), load(kind, folders[kind], batch_size=3)
    for one, other in zip(both(default, kind), both(small, kind), strict=True):
        torch.testing.assert_close(one.vectors, other.vectors, atol=1e-6, rtol=0)


def test_the_revision_is_in_the_identity(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders[kind], tmp_path / "copy")
    spec = parse(ModelSpec, {"class": KINDS[kind].short, "path": str(folder)})
    before = loader.identities({"m": spec})["m"]["revision"]
    assert before == load(kind, folder).revision == loader.revision("m", spec)
    weights = next(folder.glob("*.safetensors"))
    held = load_file(weights)
    save_file({**held, "logit_scale": held["logit_scale"] + 1} if "logit_scale" in held else {}, weights)
    assert loader.identities({"m": spec})["m"]["revision"] != before


def test_a_pickle_is_refused(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders[kind], tmp_path / "pickled")
    next(folder.glob("*.safetensors")).unlink()
    torch.save({"weight": torch.ones(2)}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model.bin is a pickle"):
        load(kind, folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match="contains no safetensors weights"):
        load(kind, folder)


def test_weights_that_are_not_all_there_are_refused(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders[kind], tmp_path / "lacking")
    weights = next(folder.glob("*.safetensors"))
    held = load_file(weights)
    gone = next(name for name in sorted(held) if name.endswith("weight"))
    save_file({name: value for name, value in held.items() if name != gone}, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=gone):
        load(kind, folder)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"batchsize": 4}, "takes no 'batchsize'; did you mean 'batch_size'"),
        ({"revison": "x"}, "takes no 'revison'; did you mean 'revision'"),
    ],
)
def test_an_unknown_argument_is_refused(kind: str, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load(kind, Path("anywhere"), **arguments)


def test_impossible_values_are_refused(kind: str, folders: dict[str, Path]) -> None:
    pooling = {"clap": "window_pooling", "x_clip": None}.get(kind, "frame_pooling")
    refused: list[tuple[dict[str, Any], str]] = [
        ({"dtype": "float23"}, "not 'float23'; did you mean 'float32'"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"revision": "main"}, "it has no revision 'main'"),
    ]
    if pooling:
        refused.append(({pooling: "medioid"}, "not 'medioid'; did you mean 'medoid'"))
    for arguments, said in refused:
        with pytest.raises(ModelError, match=said):
            load(kind, folders[kind], **arguments)


def test_what_it_does_not_take_is_refused(kind: str, folders: dict[str, Path]) -> None:
    encoder = load(kind, folders[kind])
    with pytest.raises(ModelError, match="not code"):
        encoder.encode(["x"], "code")
    for modality in ("text", KINDS[kind].media):
        assert encoder.encode([], modality).vectors.shape == (0, encoder.dim)


def test_what_it_takes_is_known_without_loading_it(kind: str) -> None:
    taken = loader.modalities("m", KINDS[kind].short, {"path": "nowhere"})
    assert taken == {"clap": {"text", "audio"}, "x_clip": {"text", "video"}}.get(kind, {"text", "image", "video"})


def test_prepared_in_many_threads_it_is_the_same(kind: str, folders: dict[str, Path]) -> None:
    encoder = load(kind, folders[kind])
    alone, (_, media) = encoder._threads, both(encoder, kind)
    encoder._threads = 6
    items = list(KINDS[kind].items) * 5
    many = encoder.encode(items, KINDS[kind].media).vectors
    encoder._threads = alone
    assert torch.equal(many, media.vectors.repeat(5, 1))


def test_a_model_of_another_kind_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"CLIPModel has no get_audio_features\(\): another kind of model"):
        loader.load("m", "clap", {"path": str(folders["clip"])})
    with pytest.raises(ModelError, match=r"open_clip_config.json"):
        loader.load("m", "open-clip", {"path": str(folders["clip"])})
    with pytest.raises(ModelError, match="max_windows must be at least 1, not 0"):
        loader.load("m", "clap", {"path": str(folders["clap"]), "max_windows": 0})


NAN = {
    "clip": ("text_model.embeddings.token_embedding.weight", "q"),
    "siglip": ("text_model.embeddings.token_embedding.weight", "q"),
    "clap": ("text_model.embeddings.word_embeddings.weight", "q"),
}


@pytest.mark.parametrize("named", sorted(NAN))
def test_nan_fails_its_text_alone(named: str, folders: dict[str, Path], tmp_path: Path) -> None:
    tensor, letter = NAN[named]
    token = transformers.AutoTokenizer.from_pretrained(folders[named])(f"a{letter}a", add_special_tokens=False)[
        "input_ids"
    ][1]
    folder = tiny.broken(shutil.copytree(folders[named], tmp_path / "broken"), tensor, token)
    encoded = load(named, folder).encode(["a", f"a{letter}a", "b"], "text")
    assert list(encoded.errors) == [1]
    assert isinstance(encoded.errors[1], EmbeddingError)
    assert str(encoded.errors[1]) == f"{named} gave a vector that is not finite, or zero"
    whole = load(named, folders[named]).encode(["a", "b"], "text").vectors
    assert torch.equal(encoded.vectors[[0, 2]], whole)


def test_nan_samples_fail_their_sound_alone(folders: dict[str, Path]) -> None:
    encoder = load("clap", folders["clap"])
    lost = Audio("nan", SOUNDS[0].samples * float("nan"), 16_000)
    encoded = encoder.encode([SOUNDS[1], lost, SOUNDS[2]], "audio")
    assert [type(error) for error in encoded.errors.values()] == [EmbeddingError]
    assert list(encoded.errors) == [1]
    assert torch.equal(encoded.vectors[[0, 2]], encoder.encode(SOUNDS[1:3], "audio").vectors)


@pytest.mark.parametrize("named", ["clip", "siglip", "siglip2", "open_clip"])
def test_a_video_is_the_mean_of_its_frames_or_their_medoid(named: str, folders: dict[str, Path]) -> None:
    videos = [tiny.video(0, 3), tiny.video(1, 1), tiny.video(2, 8)]
    encoder = load(named, folders[named])
    frames = [encoder.encode(tiny.frames_of(one), "image").vectors for one in videos]
    encoded = encoder.encode(videos, "video")
    expected = torch.stack([F.normalize(own.mean(dim=0), dim=0) for own in frames])
    torch.testing.assert_close(encoded.vectors, expected, atol=1e-6, rtol=0)
    for row, one in enumerate(videos):
        torch.testing.assert_close(encoder.encode([one], "video").vectors[0], encoded.vectors[row], atol=1e-6, rtol=0)
    assert torch.equal(encoder.encode(videos[::-1], "video").vectors.flip(0), encoded.vectors)
    medoids = load(named, folders[named], frame_pooling="medoid").encode(videos, "video").vectors
    for own, medoid in zip(frames, medoids, strict=True):
        assert torch.equal(medoid, own[(own @ own.T).sum(dim=1).argmax()])


def test_a_video_model_takes_frames_at_even_distances(folders: dict[str, Path]) -> None:
    encoder = load("x_clip", folders["x_clip"])
    long, short = tiny.video(0, 10), tiny.video(1, 2)
    for given, taken in ((long, [1, 3, 6, 8]), (short, [0, 0, 1, 1])):
        own = Video("own", given.frames[taken], given.times[taken], given.duration)
        one, other = encoder.encode([given, own], "video").vectors
        assert torch.equal(one, other)


def test_a_picture_like_a_thread_fails_alone(folders: dict[str, Path]) -> None:
    encoder = load("clip", folders["clip"])
    encoded = encoder.encode([tiny.image(0), tiny.image(1, 801, 4), tiny.image(2, 800, 4)], "image")
    assert {row: str(error) for row, error in encoded.errors.items()} == {
        1: "801 x 4 pixels: more than 200 times as long as it is wide"
    }
    assert torch.equal(encoded.vectors[0], encoder.encode([tiny.image(0)], "image").vectors[0])


def test_a_video_without_frames_fails_alone(folders: dict[str, Path]) -> None:
    whole = tiny.video(0, 2)
    empty = Video("none", whole.frames[:0], whole.times[:0], 0.0)
    encoded = load("clip", folders["clip"]).encode([empty, whole], "video")
    assert {row: str(error) for row, error in encoded.errors.items()} == {0: "contains no frames"}
    assert encoded.vectors[1].isfinite().all()


def test_a_longer_sound_is_heard_in_windows(folders: dict[str, Path]) -> None:
    encoder = load("clap", folders["clap"], max_windows=3)
    long, other = tiny.sound(0, 9.5), tiny.sound(1, 1.75)
    windows = [long.part([start, start + 1]) for start in (0, 4.25, 8.5)]
    expected = F.normalize(encoder.encode(windows, "audio").vectors.mean(dim=0), dim=0)
    encoded = encoder.encode([SOUNDS[0], long, other, SOUNDS[1]], "audio").vectors
    torch.testing.assert_close(encoded[1], expected, atol=1e-6, rtol=0)
    halves = encoder.encode([other.part([0, 1]), other.part([0.75, 1.75])], "audio").vectors
    torch.testing.assert_close(encoded[2], F.normalize(halves.mean(dim=0), dim=0), atol=1e-6, rtol=0)
    assert torch.equal(encoder.encode([other, long], "audio").vectors, encoded[[2, 1]])
    part = tiny.sound(0, 9.5).part([4.25, 5.25])  # which knows when it began
    torch.testing.assert_close(encoder.encode([part], "audio").vectors[0], encoder.encode(windows, "audio").vectors[1])


def test_sound_at_another_rate_is_resampled(folders: dict[str, Path]) -> None:
    from scipy.signal import resample_poly

    encoder = load("clap", folders["clap"])
    sound = tiny.sound(0, 1, rate=44_100)
    own = Audio("own", resample_poly(sound.samples, 160, 441).astype("float32")[:16_000], 16_000)
    vectors = encoder.encode([sound, own], "audio").vectors
    assert torch.equal(vectors[0], vectors[1])


def test_sound_without_samples_fails_alone(folders: dict[str, Path]) -> None:
    silence = Audio("none", SOUNDS[0].samples[:0], 16_000)
    encoded = load("clap", folders["clap"]).encode([silence, SOUNDS[0]], "audio")
    assert {row: str(error) for row, error in encoded.errors.items()} == {0: "contains no samples"}
    assert encoded.vectors[1].isfinite().all()


def test_a_clap_that_fuses_hears_short_sounds_as_they_are(tmp_path: Path) -> None:
    folder = tiny.clap(tmp_path / "fused", fusion=True)
    model, processor = (
        transformers.AutoModel.from_pretrained(folder).eval(),
        transformers.AutoProcessor.from_pretrained(folder),
    )
    features = processor(audio=[one.samples for one in SOUNDS], sampling_rate=16_000, return_tensors="pt")
    features["is_longer"][:] = False  # of which the library sets one at random, where none is longer
    with torch.inference_mode():
        library = F.normalize(vectors_of(model.get_audio_features(**features)), dim=1)
    encoder = loader.load("fused", "clap", {"path": str(folder)})
    vectors = encoder.encode(SOUNDS, "audio").vectors
    torch.testing.assert_close(vectors, library, atol=1e-5, rtol=0)
    assert torch.equal(encoder.encode(SOUNDS[::-1], "audio").vectors.flip(0), vectors)


def test_padding_on_the_left_cuts_off_no_text(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["clap"], tmp_path / "left")
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "padding_side": "left"}), encoding="utf-8")
    encoder = load("clap", folder)
    texts = ["do", "a longer text, to which the others are padded at first", "cats", "doings"]
    vectors = encoder.encode(texts, "text").vectors
    assert torch.equal(encoder.encode(texts[::-1], "text").vectors.flip(0), vectors)
    # Of four and eight tokens, these are not padded in the end.
    whole = load("clap", folders["clap"]).encode(texts, "text").vectors
    assert torch.equal(vectors[[0, 3]], whole[[0, 3]])


def test_half_the_bits_come_close(kind: str, folders: dict[str, Path]) -> None:
    exact, half = load(kind, folders[kind]), load(kind, folders[kind], dtype="bfloat16")
    for one, other in zip(both(exact, kind), both(half, kind), strict=True):
        assert other.vectors.dtype == torch.float32
        torch.testing.assert_close(other.vectors, one.vectors, atol=2e-2, rtol=0)


def test_code_that_comes_with_a_model_does_not_run(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["clip"], tmp_path / "code")
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    own = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps({**settings, **own}), encoding="utf-8")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n", encoding="utf-8")
    with pytest.raises(ModelError, match="code: "):
        load("clip", folder)
    assert not (tmp_path / "ran").exists()


def test_an_open_clip_folder_of_another_layout_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["open_clip"], tmp_path / "layout")
    (folder / "open_clip_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match="layout: there is no 'model_cfg'"):
        load("open_clip", folder)


def test_an_open_clip_tokenizer_that_asks_for_code_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["open_clip"], tmp_path / "code")
    settings = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
    settings["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
    (folder / "open_clip_config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(ModelError, match="asks to run code that comes with the model"):
        load("open_clip", folder)


def test_a_pickle_that_open_clip_would_prefer_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["open_clip"], tmp_path / "preferred")
    (folder / tiny.WEIGHTS).rename(folder / "model.safetensors")
    load("open_clip", folder)
    torch.save({"weight": torch.ones(2)}, folder / "open_clip_pytorch_model.bin")
    loader.release()
    with pytest.raises(ModelError, match=r"open_clip_pytorch_model.bin is a pickle that open_clip would open"):
        load("open_clip", folder)


@pytest.mark.parametrize(
    ("path", "checkpoint", "said"),
    [
        ("ViT-B-33", "openai", "open_clip has no model 'ViT-B-33'; did you mean 'ViT-B-32'"),
        (
            "ViT-B-32",
            "laion2b_s34b_b79",
            "has no checkpoint 'laion2b_s34b_b79' of ViT-B-32; did you mean 'laion2b_s34b",
        ),
        (
            "ViT-B-32",
            "laion2b_s34b_b79k",
            "laion/CLIP-ViT-B-32-laion2B-s34B-b79K: there is no such folder, and it cannot be downloaded",
        ),
    ],
)
def test_checkpoints_by_the_librarys_own_names(
    path: str, checkpoint: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=said):
        loader.load("m", "open-clip", {"path": path, "checkpoint": checkpoint})


def test_a_cache_round_it_changes_nothing(folders: dict[str, Path]) -> None:
    encoder = load("clip", folders["clip"])
    cached = CachedEncoder(encoder)
    items = [*tiny.images(), *tiny.images()[:3]]
    assert torch.equal(cached.encode(items, "image").vectors, encoder.encode(items, "image").vectors)
