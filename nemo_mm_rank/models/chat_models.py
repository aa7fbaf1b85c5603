"""Published multimodal language models as encoders: UNITE, Omni-Embed-Nemotron and Qwen2.5-Omni."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nemo_mm_rank.models.base import Encoded
from nemo_mm_rank.models.batching import Features
from nemo_mm_rank.models.chat_encoder import Chat, ChatEncoder, Sight
from nemo_mm_rank.models.weights import check_version
from nemo_mm_rank.schema import Modality

PASSAGE, QUERY = "passage: ", "query: "
FRAME = (32 * 14 * 14, 64 * 28 * 28)
"""Pixels of a video's frame, by the model's card."""
ATTENDS_BOTH_WAYS = (5, 23)
"""The first transformers that honours ``config.is_causal``."""


@dataclass(eq=False)
class OmniEmbedEncoder(ChatEncoder):
    """Embeds text, images, videos and audio with `nvidia/omni-embed-nemotron-3b`.

    It is the thinker of Qwen2.5-Omni with attention in both directions, and the mean of its tokens' states; texts begin
    with ``passage:``, queries with ``query:``. The code that comes with the model only turns the attention, and was
    written for a transformers 4, so the library's own class is loaded and turned here; none of that code runs.

    Of a video two frames a second are seen, all of them where `media.video_frames` brings fewer; its audio is not
    heard. A recording is heard up to the length that the model's processor takes.

    Args:
        positions: ``mrope``, as it was trained, or ``1d``.
        pooling: ``mean``, as it was trained, or the ``last`` token.
        max_length: tokens that a text is cut to, at its end.
    """

    modalities = frozenset({Modality.TEXT, Modality.IMAGE, Modality.VIDEO, Modality.AUDIO})
    _model_class = "Qwen2_5OmniThinkerForConditionalGeneration"
    _processor_class = "Qwen2_5OmniProcessor"
    _sight = Sight(video=FRAME, rate=2.0, frames=(4, 768))
    _chat = Chat(asks=False, passage=PASSAGE)

    def __post_init__(self) -> None:
        """Load the model, and let it attend in both directions.

        Raises:
            ModelError: the library would attend in one, whatever it is told.
        """
        check_version(self.path, ATTENDS_BOTH_WAYS, "which lets it attend both ways")
        super().__post_init__()
        self._model.model.language_model.config.is_causal = False

    def encode_queries(self, texts: Sequence[str]) -> Encoded:
        """Embed search queries, with the prompt that is theirs."""
        return self._encode(texts, QUERY)


@dataclass(eq=False)
class QwenOmniEncoder(ChatEncoder):
    """Embeds text, images, videos and audio by the states of the Qwen2.5-Omni thinker.

    The model was not trained to embed. By ``mean`` a chat that holds nothing but the item is read, and all its tokens
    are averaged; by ``last`` the chat ends with "Summary above ... in one word:" and the beginning of the answer,
    whose state is taken.

    Images are scaled as the model's processor says. Of a video one frame a second is seen, 4 to 12 of them, chosen
    among those that `media.video_frames` brings (all of them where these are fewer); its audio is not heard. A
    recording is heard up to the length that the model's processor takes (300 seconds, as published).

    Args:
        positions: ``mrope``, the model's own, or ``1d``.
        pooling: ``mean`` or ``last``.
        max_length: tokens that a text is cut to, prompt included: at its end by ``mean``, at its beginning by ``last``.
    """

    modalities = frozenset({Modality.TEXT, Modality.IMAGE, Modality.VIDEO, Modality.AUDIO})
    _model_class = "Qwen2_5OmniThinkerForConditionalGeneration"
    _processor_class = "Qwen2_5OmniProcessor"
    _sight = Sight()

    def __post_init__(self) -> None:
        """Load the model."""
        self._chat = Chat(asks=self.pooling == "last")
        super().__post_init__()


TOKEN = 28 * 28
"""Pixels that a token of the language model stands for."""

PICTURES = (256 * TOKEN, 1280 * TOKEN)
FETCHED = (128 * TOKEN, 240 * 320)
"""What the authors' loader makes of a video's frames before their processor scales them up as it does images: less
where a frame has more, more where it has less."""


@dataclass(eq=False)
class UniteEncoder(ChatEncoder):
    """Embeds text, images, videos, and text with either, as `friedrichor/Unite-*` was trained to.

    Qwen2-VL reads the chat "*content*, Summary above {sentence|image|video, joined by 'and'} in one word:", and the
    state of the ``<|endoftext|>`` that follows, after the final norm, is the embedding. Its tokens have plain
    positions, as they had in the authors' code; by the library's default (``mrope``) all but texts have other vectors.

    An image is scaled to 256 to 1,280 tokens. Of a video one frame a second is seen, 4 to 12 of them, chosen among
    those that `media.video_frames` brings; where these are fewer, it is all of them, so set it to 12 or more.

    Audio is refused: UNITE was not trained on it.

    Args:
        positions: ``1d``, or ``mrope``, which suits a Qwen2-VL that has been trained in another way.
        pooling: ``last``, as it was trained, or the ``mean`` of all tokens.
        max_length: tokens that a text is cut to, at its beginning, prompt included.
        adapter: what ``nemo-mm-rank adapt`` has learnt (or another LoRA adapter of peft): a local folder, or a name on
            the hub. It is added to the weights; its digest is a part of the revision.
    """

    positions: str = "1d"
    pooling: str = "last"
    max_length: int = 2048
    adapter: str | None = None

    modalities = frozenset({Modality.TEXT, Modality.IMAGE, Modality.VIDEO})
    _model_class = "Qwen2VLForConditionalGeneration"
    _processor_class = "Qwen2VLProcessor"
    _sight = Sight(image=PICTURES, video=PICTURES, shrunk=FETCHED)
    _chat = Chat(system="You are a helpful assistant.", ending="<|endoftext|>")

    def _kinds_of_tokens(self, ids: torch.Tensor) -> Features:
        config = self._model.config
        return {"mm_token_type_ids": (ids == config.image_token_id) + 2 * (ids == config.video_token_id)}
