"""The thinker of Qwen2.5-Omni, tiny and with random weights, processor included."""

from __future__ import annotations

import json
from pathlib import Path

from tests.models.tiny_library import library, make_tokenizer, rope, version
from tests.models.tiny_writers import TEXT, chat, decided

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MARKS = {
    "image_token": "<|IMAGE|>",
    "audio_token": "<|AUDIO|>",
    "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
}


def thinker(folder: Path) -> Path:
    """Sees pictures and videos, and hears a second of sound."""
    from tokenizers import pre_tokenizers

    transformers = library()
    vocabulary = {byte: number for number, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = make_tokenizer("Qwen2Tokenizer", vocabulary)
    tokenizer.add_special_tokens({"additional_special_tokens": [*SPECIAL, *MARKS.values()]})
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    if version() < (5, 0):  # which writes no others down
        tokenizer.extra_special_tokens = MARKS
    for name, mark in MARKS.items():
        tokenizer._set_model_specific_special_tokens({name: mark})
    number = tokenizer.convert_tokens_to_ids
    config = transformers.Qwen2_5OmniThinkerConfig(
        text_config={
            **TEXT,
            "vocab_size": len(tokenizer),
            **rope([1, 1, 2]),
            "pad_token_id": number("<|endoftext|>"),
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 4,
            "out_hidden_size": 32,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        audio_config={
            "d_model": 32,
            "encoder_layers": 2,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "num_mel_bins": 16,
            "max_source_positions": 50,
            "n_window": 10,
            "output_dim": 32,
        },
        image_token_index=number("<|IMAGE|>"),
        video_token_index=number("<|VIDEO|>"),
        audio_token_index=number("<|AUDIO|>"),
        vision_start_token_id=number("<|vision_bos|>"),
        vision_end_token_id=number("<|vision_eos|>"),
        audio_start_token_id=number("<|audio_bos|>"),
        audio_end_token_id=number("<|audio_eos|>"),
        pad_token_id=number("<|endoftext|>"),
    )
    model = decided(transformers.Qwen2_5OmniThinkerForConditionalGeneration(config), std=0.1)
    model.save_pretrained(folder)
    pixels = {"shortest_edge": 4 * 28 * 28, "longest_edge": 16 * 28 * 28}
    images = transformers.Qwen2VLImageProcessor(size=pixels)
    sounds = transformers.WhisperFeatureExtractor(
        feature_size=16, sampling_rate=16_000, hop_length=160, chunk_length=1, return_attention_mask=True
    )
    transformers.Qwen2_5OmniProcessor(
        image_processor=images,
        video_processor=transformers.Qwen2VLVideoProcessor(size=pixels),
        feature_extractor=sounds,
        tokenizer=tokenizer,
        chat_template=chat(
            image="<|vision_bos|><|IMAGE|><|vision_eos|>",
            video="<|vision_bos|><|VIDEO|><|vision_eos|>",
            audio="<|audio_bos|><|AUDIO|><|audio_eos|>",
        ),
    ).save_pretrained(folder)
    if version() < (5, 0):  # which writes one of them over the other; published models have both
        both = {**json.loads(sounds.to_json_string()), **json.loads(images.to_json_string())}
        (folder / "preprocessor_config.json").write_text(json.dumps(both), encoding="utf-8")
    return folder
