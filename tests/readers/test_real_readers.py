"""What trainers' own readers yield of our exports: ten real pairs each of text, image, audio and video.

They cannot share an environment with Curator, so `make test-readers` makes one; elsewhere these tests skip.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from nemo_mm_rank.config import PoolSource
from nemo_mm_rank.demo import make_demo_pool
from nemo_mm_rank.io.exports import export_blend
from nemo_mm_rank.io.ingest import ingest

KINDS = ("text", "image", "audio", "video")
EACH = 10

pytest.importorskip("megatron.energon", reason="the readers are in an environment of their own: make test-readers")


@pytest.fixture(scope="module")
def blend(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    folder = tmp_path_factory.mktemp("readers")
    pool = make_demo_pool(folder / "pool", EACH + 4)
    ingest([PoolSource(path=str(pool))], folder / "shards")
    table = pa.concat_tables(pq.read_table(part) for part in sorted((folder / "shards").glob("part-*.parquet")))
    table = table.filter(pc.is_null(table["fault"]))
    table = pa.concat_tables(table.filter(pc.equal(table["modality"], kind)).slice(0, EACH) for kind in KINDS)
    assert Counter(table["modality"].to_pylist()) == dict.fromkeys(KINDS, EACH)
    return table.append_column("rank", pa.array(range(1, table.num_rows + 1)))


def put_in(row: dict[str, Any]) -> tuple[str, str, str, bytes | None]:
    """Return modality, what is asked, what is answered, and the content of the medium."""
    if row["modality"] == "text":
        return "text", row["data"], row["annotation"], None
    return row["modality"], "", row["annotation"], Path(row["media_root"], row["data"]).read_bytes()


def all_put_in(blend: pa.Table) -> list[tuple[str, str, str, bytes | None]]:
    return sorted((put_in(row) for row in blend.to_pylist()), key=repr)


def unmarked(text: str, kind: str) -> str:
    assert text.count(f"<{kind}>") == (kind != "text")
    return text.replace(f"<{kind}>", "")


def test_energon(blend: pa.Table, tmp_path: Path) -> None:
    from megatron.energon import Cooker, DefaultTaskEncoder, WorkerConfig, get_loader, get_train_dataset, stateless

    @stateless  # type: ignore[untyped-decorator]
    def as_it_is(sample: Any) -> Any:
        return sample

    class Encoder(DefaultTaskEncoder):  # type: ignore[misc]
        decoder = None
        cookers = [Cooker(as_it_is)]  # noqa: RUF012

        @stateless  # type: ignore[untyped-decorator]
        def encode_sample(self, sample: Any) -> Any:
            return sample

        def batch(self, samples: list[Any]) -> Any:
            return samples

    export_blend(blend, tmp_path / "out", "energon")
    found = []
    for kind in KINDS:
        data = get_train_dataset(
            tmp_path / "out" / kind,
            batch_size=1,
            shuffle_buffer_size=None,
            max_samples_per_sequence=None,
            worker_config=WorkerConfig(rank=0, world_size=1, num_workers=0),
            task_encoder=Encoder(),
            repeat=False,
        )
        for [sample] in get_loader(data):
            asked, said = json.loads(sample["json"])["messages"]
            [part] = asked["content"]
            content = sample[part["path"]] if kind != "text" else None
            found.append((kind, part.get("text", ""), said["content"][0]["text"], content))
    assert sorted(found, key=repr) == all_put_in(blend)
    whole = get_train_dataset(
        tmp_path / "out/metadataset.yaml",
        batch_size=1,
        shuffle_buffer_size=None,
        max_samples_per_sequence=None,
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=0),
        task_encoder=Encoder(),
    )
    loaded = iter(get_loader(whole))
    assert {next(loaded)[0]["__subflavors__"]["modality"] for _ in range(100)} == set(KINDS)


def test_llama_factory(blend: pa.Table, tmp_path: Path) -> None:
    from llamafactory.data.loader import _get_merged_dataset
    from llamafactory.hparams import DataArguments

    export_blend(blend, tmp_path / "out", "sharegpt")
    arguments = DataArguments(dataset="blend", dataset_dir=str(tmp_path / "out"), media_dir=str(tmp_path / "out"))
    hub = {"hf_hub_token": None, "ms_hub_token": None, "om_hub_token": None}
    model = SimpleNamespace(cache_dir=str(tmp_path / "cache"), **hub)
    training = SimpleNamespace(local_process_index=0, should_log=False, seed=1)
    found = []
    for row in _get_merged_dataset(["blend"], model, arguments, training, stage="sft"):
        [asked], [said] = row["_prompt"], row["_response"]
        files = [(kind, file) for kind in KINDS[1:] for file in row[f"_{kind}s"] or ()]
        kind, content = next(((kind, Path(file).read_bytes()) for kind, file in files), ("text", None))
        found.append((kind, unmarked(asked["content"], kind), said["content"], content))
        assert (asked["role"], said["role"]) == ("user", "assistant")
    assert sorted(found, key=repr) == all_put_in(blend)


def test_llama_factory_makes_tokens(blend: pa.Table, tmp_path: Path) -> None:
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments

    words = blend.filter(pc.equal(blend["modality"], "text"))
    export_blend(words, tmp_path / "out", "sharegpt")
    tokenizer = tiny_tokenizer()
    arguments = DataArguments(
        dataset="blend", dataset_dir=str(tmp_path / "out"), template="default", cutoff_len=4096, overwrite_cache=True
    )
    hub = {"hf_hub_token": None, "ms_hub_token": None, "om_hub_token": None}
    model = SimpleNamespace(cache_dir=str(tmp_path / "cache"), **hub)
    template = get_template_and_fix_tokenizer(tokenizer, arguments)
    from transformers import Seq2SeqTrainingArguments

    training = Seq2SeqTrainingArguments(output_dir=str(tmp_path / "t"), use_cpu=True, report_to=[])
    rows = get_dataset(template, model, arguments, training, stage="sft", tokenizer=tokenizer)["train_dataset"]
    learnt = [tokenizer.decode([one for one in row["labels"] if one >= 0], skip_special_tokens=True) for row in rows]
    assert [text.strip() for text in learnt] == words["annotation"].to_pylist()


def tiny_tokenizer() -> Any:
    """Return a tokenizer of bytes, which needs no file."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fast: Any = PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<s>", "</s>", "<pad>", "<image>"]
    tokenizer = Tokenizer(models.BPE(vocab={one: at for at, one in enumerate([*letters, *special])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    return fast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=8192)


def test_swift(blend: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from swift.dataset import load_dataset
    from swift.template.vision_utils import load_file, load_image

    [file, _] = export_blend(blend, tmp_path / "out", "swift")
    monkeypatch.setenv("ROOT_IMAGE_DIR", str(tmp_path / "out"))
    rows, _ = load_dataset([str(file)], num_proc=1)
    found = []
    for row in rows:
        asked, said = row["messages"]
        files = [(kind, one) for kind in KINDS[1:] for one in row.get(f"{kind}s") or ()]
        names = [(kind, one["path"] if isinstance(one, dict) else one) for kind, one in files]
        kind, content = next(((kind, load_file(name).read()) for kind, name in names), ("text", None))
        if kind == "image":
            assert load_image(names[0][1]).size == Image.open(tmp_path / "out" / names[0][1]).size
        found.append((kind, unmarked(asked["content"], kind), said["content"], content))
    assert sorted(found, key=repr) == all_put_in(blend)


def llava_processor() -> Any:
    from transformers import CLIPImageProcessor, LlavaProcessor

    processor: Any = LlavaProcessor

    template = (
        "{% for m in messages %}{{ m['role'] }}: {% for p in m['content'] %}"
        "{% if p['type'] == 'image' %}<image>{% else %}{{ p['text'] }}{% endif %}{% endfor %}</s>{% endfor %}"
    )
    pictures = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    return processor(
        pictures,
        tiny_tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    )


def pictured(folder: Path, messages: list[dict[str, Any]]) -> Iterator[Image.Image]:
    for turn in messages:
        for part in turn["content"]:
            if part["type"] == "image":
                yield Image.open(folder / part["path"]).convert("RGB")


def test_trl(blend: pa.Table, tmp_path: Path) -> None:
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    pictures = blend.filter(pc.equal(blend["modality"], "image"))
    [file, _] = export_blend(pictures, tmp_path / "out", "messages")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    examples = [{"messages": row["messages"], "images": list(pictured(file.parent, row["messages"]))} for row in rows]
    processor = llava_processor()
    batch = DataCollatorForVisionLanguageModeling(processor)(examples)
    assert batch["pixel_values"].shape == (EACH, 3, 28, 28)
    read = processor.batch_decode(batch["input_ids"], skip_special_tokens=True)
    assert read == [f"user: assistant: {said}" for said in pictures["annotation"].to_pylist()]
    originals = [Image.open(Path(row["media_root"], row["data"])).convert("RGB") for row in pictures.to_pylist()]
    assert (batch["pixel_values"] == processor.image_processor(originals, return_tensors="pt")["pixel_values"]).all()
