"""A tiny Grounding DINO with random weights, its processor and tokenizer included."""

from __future__ import annotations

from pathlib import Path

from tests.models.tiny_library import library, make_tokenizer
from tests.models.tiny_writers import decided

LONGEST = 32
MARKS = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
"""Where BERT has them: the model knows its separators by their numbers."""
WORDS = ["a", "cat", "dog", "remote", "control", "car"]


def grounding_dino(folder: Path) -> Path:
    transformers = library()
    vocabulary = {f"[unused{number}]": number for number in range(1030) if number not in MARKS.values()}
    for number, word in enumerate(WORDS, start=200):
        del vocabulary[f"[unused{number}]"]
        vocabulary[word] = number
    tokenizer = make_tokenizer("BertTokenizer", {**vocabulary, **MARKS})
    tokenizer.model_max_length = 64
    backbone = transformers.SwinConfig(
        image_size=64,
        patch_size=4,
        embed_dim=16,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 2, 4],
        window_size=4,
        out_features=["stage2", "stage3", "stage4"],
    )
    text = transformers.BertConfig(
        vocab_size=1030,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    config = transformers.GroundingDinoConfig(
        backbone_config=backbone,
        text_config=text,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        num_queries=10,
        max_text_len=LONGEST,
        num_feature_levels=4,
        encoder_n_points=2,
        decoder_n_points=2,
        disable_custom_kernels=True,
    )
    decided(transformers.GroundingDinoForObjectDetection(config), std=0.1).save_pretrained(folder)
    size = {"shortest_edge": 64, "longest_edge": 96}
    transformers.GroundingDinoProcessor(
        image_processor=transformers.GroundingDinoImageProcessor(size=size), tokenizer=tokenizer
    ).save_pretrained(folder)
    return folder
