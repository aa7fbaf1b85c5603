"""UNITE (arXiv 2505.19650): text, pictures and videos, each alone or together with text, in one space."""

from __future__ import annotations

import torch

from nemo_mm_rank.models.batches import Features
from nemo_mm_rank.models.chat_encoder import Chat, ChatEncoder
from nemo_mm_rank.models.sight import Sight
from nemo_mm_rank.schema import Modality

TOKEN = 28 * 28
"""Pixels that a token of the language model stands for."""

PICTURES = (256 * TOKEN, 1280 * TOKEN)
FETCHED = (128 * TOKEN, 240 * 320)
"""What the authors' loader makes of a video's frames before their processor scales them up as it does pictures: less
where a frame has more, more where it has less."""


class UniteEncoder(ChatEncoder):
    """Embeds text, images, videos, and text with either, as `friedrichor/Unite-*` was trained to.

    Qwen2-VL reads the chat "*content*, Summary above {sentence|image|video, joined by 'and'} in one word:", and the
    state of the ``<|endoftext|>`` that follows, after the final norm, is the embedding. Its tokens have plain
    positions, as they had in the authors' code; by the library's default (``mrope``) all but texts have other vectors.

    A picture is scaled to 256 to 1,280 tokens. Of a video one frame a second is seen, 4 to 12 of them, chosen among
    those that `media.video_frames` brings; where these are fewer, it is all of them, so set it to 12 or more.

    Sound is refused: UNITE was not trained on it.

    Args:
        path: a local folder, or a name on the Hugging Face hub (of which only safetensors weights are fetched; with
            ``HF_HUB_OFFLINE=1`` the local cache is all there is).
        device: where it runs.
        positions: ``1d``, or ``mrope``, which suits a Qwen2-VL that has been trained in another way.
        name: what the configuration calls it; default: ``path``.
        revision: branch, tag or commit on the hub.
        dtype: ``float32``, ``bfloat16`` or ``float16``; default: float32 on a CPU, bfloat16 elsewhere.
        pooling: ``last``, as it was trained, or the ``mean`` of all tokens.
        batch_size: media of a forward pass; default: 1 on a CPU, 8 (or what the memory allows) elsewhere. A part of
            what decides the last bits, so it belongs to the configuration.
        max_length: tokens that a text is cut to, at its beginning, prompt included.
        adapter: what ``nemo-mm-rank adapt`` has learnt (or another LoRA adapter of peft): a local folder, or a name on
            the hub. It is added to the weights; its digest is a part of the revision.

    Raises:
        ModelError: no such folder or model, weights that are pickles or incomplete, or another kind of model.
    """

    modalities: frozenset[str] = frozenset({Modality.TEXT, Modality.IMAGE, Modality.VIDEO})
    _model_class = "Qwen2VLForConditionalGeneration"
    _processor_class = "Qwen2VLProcessor"
    _sight = Sight(image=PICTURES, video=PICTURES, shrunk=FETCHED)

    def __init__(
        self,
        path: str,
        device: str = "cpu",
        positions: str = "1d",
        name: str | None = None,
        revision: str | None = None,
        dtype: str | None = None,
        pooling: str = "last",
        batch_size: int | None = None,
        max_length: int = 2048,
        adapter: str | None = None,
    ) -> None:
        super().__init__(
            path,
            name,
            device,
            revision,
            dtype,
            positions,
            pooling,
            batch_size,
            max_length,
            Chat(system="You are a helpful assistant.", ending="<|endoftext|>"),
            adapter,
        )

    def _kinds_of_tokens(self, ids: torch.Tensor) -> Features:
        config = self._model.config
        return {"mm_token_type_ids": (ids == config.image_token_id) + 2 * (ids == config.video_token_id)}
