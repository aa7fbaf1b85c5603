"""Omni-Embed-Nemotron (arXiv 2510.03458): text, pictures, videos and sound in one space, trained for retrieval."""

from __future__ import annotations

from collections.abc import Sequence

from nemo_mm_rank.models.base import Encoded
from nemo_mm_rank.models.chat_encoder import Chat, ChatEncoder
from nemo_mm_rank.models.sight import Sight
from nemo_mm_rank.schema import Modality

PASSAGE, QUERY = "passage: ", "query: "
FRAME = (32 * 14 * 14, 64 * 28 * 28)
"""Pixels of a video's frame, by the model's card."""


class OmniEmbedEncoder(ChatEncoder):
    """Embeds text, images, videos and sound with `nvidia/omni-embed-nemotron-3b`.

    It is the thinker of Qwen2.5-Omni with attention in both directions, and the mean of its tokens' states; texts begin
    with ``passage:``, queries with ``query:``. The code that comes with the model only turns the attention, and was
    written for a transformers 4, so the library's own class is loaded and turned here; none of that code runs.

    Of a video two frames a second are seen, all of them where `media.video_frames` brings fewer; its sound is not
    heard. A recording is heard up to the length that the model's processor takes.

    Args:
        path: a local folder, or a name on the Hugging Face hub (of which only safetensors weights are fetched; with
            ``HF_HUB_OFFLINE=1`` the local cache is all there is).
        device: where it runs.
        positions: ``mrope``, as it was trained, or ``1d``.
        name: what the configuration calls it; default: ``path``.
        revision: branch, tag or commit on the hub.
        dtype: ``float32``, ``bfloat16`` or ``float16``; default: float32 on a CPU, bfloat16 elsewhere.
        pooling: ``mean``, as it was trained, or the ``last`` token.
        batch_size: media of a forward pass; default: 1 on a CPU, 8 (or what the memory allows) elsewhere. A part of
            what decides the last bits, so it belongs to the configuration.
        max_length: tokens that a text is cut to, at its end.

    Raises:
        ModelError: no such folder or model, weights that are pickles or incomplete, or another kind of model.
    """

    modalities: frozenset[str] = frozenset({Modality.TEXT, Modality.IMAGE, Modality.VIDEO, Modality.AUDIO})
    _model_class = "Qwen2_5OmniThinkerForConditionalGeneration"
    _processor_class = "Qwen2_5OmniProcessor"
    _sight = Sight(video=FRAME, rate=2.0, frames=(4, 768))

    def __init__(
        self,
        path: str,
        device: str = "cpu",
        positions: str = "mrope",
        name: str | None = None,
        revision: str | None = None,
        dtype: str | None = None,
        pooling: str = "mean",
        batch_size: int | None = None,
        max_length: int = 8192,
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
            Chat(asks=False, passage=PASSAGE),
        )
        self._model.model.language_model.config.is_causal = False

    def encode_queries(self, texts: Sequence[str]) -> Encoded:
        """Embed search queries, with the prompt that is theirs."""
        return self._encode(texts, QUERY)
