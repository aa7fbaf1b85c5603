"""Qwen2.5-Omni (arXiv 2503.20215) as an encoder: its thinker reads text, pictures, videos and sound."""

from __future__ import annotations

from nemo_mm_rank.models.chat_encoder import Chat, ChatEncoder
from nemo_mm_rank.models.sight import Sight
from nemo_mm_rank.schema import Modality


class QwenOmniEncoder(ChatEncoder):
    """Embeds text, images, videos and sound by the states of the Qwen2.5-Omni thinker.

    The model was not trained to embed. By ``mean`` a chat that holds nothing but the item is read, and all its tokens
    are averaged; by ``last`` the chat ends with "Summary above ... in one word:" and the beginning of the answer,
    whose state is taken.

    Pictures are scaled as the model's processor says. Of a video one frame a second is seen, 4 to 12 of them, chosen
    among those that `media.video_frames` brings (all of them where these are fewer); its sound is not heard. A
    recording is heard up to the length that the model's processor takes (300 seconds, as published).

    Args:
        path: a local folder, or a name on the Hugging Face hub (of which only safetensors weights are fetched; with
            ``HF_HUB_OFFLINE=1`` the local cache is all there is): the thinker, or all of Qwen2.5-Omni.
        device: where it runs.
        positions: ``mrope``, the model's own, or ``1d``.
        name: what the configuration calls it; default: ``path``.
        revision: branch, tag or commit on the hub.
        dtype: ``float32``, ``bfloat16`` or ``float16``; default: float32 on a CPU, bfloat16 elsewhere.
        pooling: ``mean`` or ``last``.
        batch_size: media of a forward pass; default: 1 on a CPU, 8 (or what the memory allows) elsewhere. A part of
            what decides the last bits, so it belongs to the configuration.
        max_length: tokens that a text is cut to, prompt included: at its end by ``mean``, at its beginning by ``last``.

    Raises:
        ModelError: no such folder or model, weights that are pickles or incomplete, or another kind of model.
    """

    modalities: frozenset[str] = frozenset({Modality.TEXT, Modality.IMAGE, Modality.VIDEO, Modality.AUDIO})
    _model_class = "Qwen2_5OmniThinkerForConditionalGeneration"
    _processor_class = "Qwen2_5OmniProcessor"
    _sight = Sight()

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
            Chat(asks=pooling == "last"),
        )
