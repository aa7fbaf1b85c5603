"""Requests to an endpoint like OpenAI's: many at a time, with patience where that helps, and no word of the key."""

from __future__ import annotations

import asyncio
import email.utils
import os
import re
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from secrets import SystemRandom
from typing import Any, TypeAlias, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, ValidationError

from nemo_mm_rank.config import Settings
from nemo_mm_rank.errors import DamagedError, EmbeddingError, ModelError, PairError, TransientError, require
from nemo_mm_rank.io.files import read_sealed, write_sealed


class Answer(BaseModel):
    """What a model said, and the tokens that it took."""

    text: str = Field(min_length=1)
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Answers:
    """The answers in a folder, by the digest of what was asked.

    Args:
        folder: made when the first answer comes; None keeps nothing.
    """

    def __init__(self, folder: str | None) -> None:
        self._folder = Path(folder) if folder else None

    def get(self, key: str) -> Answer | None:
        """Return the answer to ``key`` (hexadecimal digits); None where there is none that can be read."""
        if self._folder is None:
            return None
        try:
            return Answer.model_validate(read_sealed(self._path(self._folder, key)))
        except (DamagedError, ValidationError):
            return None

    def keep(self, key: str, answer: Answer) -> Answer:
        """Keep ``answer``, or return the one that another process has kept meanwhile: equal media, equal words.

        Raises:
            StorageError: the disk is full, or the folder cannot be written to.
        """
        if self._folder is None:
            return answer
        earlier = self.get(key)
        if earlier is None:
            write_sealed(self._path(self._folder, key), answer.model_dump())
        return earlier or answer

    @staticmethod
    def _path(folder: Path, key: str) -> Path:
        return folder / key[:2] / f"{key}.json"


MILLION = 1_000_000


@dataclass
class Usage:
    """What one describer has used in this process.

    Attributes:
        requests: sent, further attempts included.
        answers: that came.
        kept: answers found on disk, which cost nothing.
        prompt_tokens: of the answers that came, as the endpoint counts them.
        completion_tokens: likewise.
        prices: of a million prompt tokens and of a million completion tokens, where they are known.
    """

    requests: int = 0
    answers: int = 0
    kept: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prices: tuple[float, float] | None = None

    def count(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Add one answer."""
        self.answers += 1
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens

    @property
    def cost(self) -> float | None:
        """What the answers cost, in the currency of the prices."""
        if self.prices is None:
            return None
        return (self.prompt_tokens * self.prices[0] + self.completion_tokens * self.prices[1]) / MILLION

    def __str__(self) -> str:
        """Return it as one line."""
        cost = "" if self.cost is None else f", cost {self.cost:.4f}"
        return (
            f"{self.requests:,} requests, {self.answers:,} answers and {self.kept:,} kept ones, "
            f"{self.prompt_tokens:,} + {self.completion_tokens:,} tokens{cost}"
        )


OPENAI = "https://api.openai.com/v1"
OPENAI_KEY = "OPENAI_API_KEY"

PASSING = frozenset({408, 425, 429})
"""Statuses that may pass, as may any from 500 on."""
REFUSED = frozenset({401, 402, 403, 404})
"""Statuses that say of the whole configuration, not of one item, that it will not do."""

LONGEST_MESSAGE = 200
NO_KEY = "none"
SHORTEST_KEY = 8
"""Characters. What is shorter protects nothing, and may be a word that descriptions hold."""

Body: TypeAlias = dict[str, Any]
T = TypeVar("T")


class Calls(Settings):
    """How hard an endpoint is asked."""

    concurrency: int = Field(8, ge=1, le=1024, description="Number of requests at the same time, for each process.")
    timeout: float = Field(120, gt=0, description="Most seconds that one request may take.")
    retries: int = Field(5, ge=0, description="Number of further attempts after the first one.")
    first_wait: float = Field(
        1.0, ge=0, description="Seconds before the second attempt; each further wait is twice as long."
    )
    longest_wait: float = Field(
        60, ge=0, description="Most seconds to wait; a request is given up if the endpoint asks for a longer wait."
    )


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


def check(base_url: object, key_variable: object) -> None:
    """Refuse what may be a key where none belongs; what is refused is not repeated.

    Raises:
        ModelError: what cannot be a URL or a variable's name, or more than an address in the URL.
    """
    if base_url is not None:
        try:
            address = urlsplit(base_url if isinstance(base_url, str) else "")
            _ = address.port
        except ValueError:  # brackets that do not match, or a port that is none
            address = urlsplit("")
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ModelError("base_url must be an http or https URL")
        if address.username is not None or address.password is not None or address.query or address.fragment:
            raise ModelError("base_url must be an address only: put the key into an environment variable")
    if key_variable is not None:
        name = key_variable if isinstance(key_variable, str) else ""
        # Names have underscores, and keys of capitals have none.
        known = "_" in name or name in os.environ
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name) or not known:
            raise ModelError(f"key_variable is the name of an environment variable, in capitals, such as {OPENAI_KEY}")


class Endpoint:
    """An endpoint for chat completions.

    The key is read from the environment for each call of `ask` and kept nowhere; redirects, which would carry it
    elsewhere, are not followed.

    Args:
        base_url: such as ``https://integrate.api.nvidia.com/v1``; default: OpenAI's.
        key_variable: the environment variable that holds the key. Default: ``OPENAI_API_KEY`` for OpenAI's own
            endpoint and no key for any other, so that none is sent where it does not belong.
        calls: how hard it is asked.
        usage: where requests and answers are counted.

    Raises:
        ModelError: what cannot be an URL or a variable's name, a key in the URL, or a variable that is not set.
    """

    def __init__(self, base_url: str | None, key_variable: str | None, calls: Calls, usage: Usage) -> None:
        require("openai", "models")
        check(base_url, key_variable)
        self.base_url = base_url or OPENAI
        self._calls = calls
        self._usage = usage
        self._key_variable = key_variable or (None if base_url else OPENAI_KEY)
        self._key()

    def _key(self) -> str:
        if self._key_variable is None:
            return NO_KEY
        key = os.environ.get(self._key_variable, "").strip()
        if not key:
            raise ModelError(f"the environment variable {self._key_variable} must contain the key, and it is not set")
        return key

    def ask(self, requests: Sequence[Callable[[], Body]], took: Callable[[int, Answer], None]) -> dict[int, PairError]:
        """Send all ``requests``, a bounded number at a time.

        Args:
            requests: each makes its body when its turn has come, in a thread; the body is a chat completion's.
            took: is handed each answer as it comes, in a thread.

        Returns:
            Position -> why there is no answer; transient where all attempts met with what may pass.

        Raises:
            ModelError: the endpoint refuses the key or the model, or there were several requests and not one got
                through: whoever starts the run again later loses nothing.
        """
        return _run(self._ask(requests, took)) if requests else {}

    async def _ask(
        self, requests: Sequence[Callable[[], Body]], took: Callable[[int, Answer], None]
    ) -> dict[int, PairError]:
        import openai

        errors: dict[int, PairError] = {}
        slots = asyncio.Semaphore(self._calls.concurrency)
        key = self._key()

        async def one(position: int) -> None:
            async with slots:
                try:
                    body = await asyncio.to_thread(requests[position])
                    answer = await self._patiently(client, key, body)
                except PairError as error:
                    errors[position] = error
                else:
                    self._usage.count(answer.prompt_tokens, answer.completion_tokens)
                    await asyncio.to_thread(took, position, answer)

        async with openai.AsyncOpenAI(
            api_key=key,
            base_url=self.base_url,
            timeout=self._calls.timeout,
            max_retries=0,
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False),
        ) as client:
            try:
                async with asyncio.TaskGroup() as group:
                    for position in range(len(requests)):
                        group.create_task(one(position))
            except ExceptionGroup as failed:
                raise failed.exceptions[0] from None
        if len(requests) > 1 and sum(isinstance(error, TransientError) for error in errors.values()) == len(requests):
            raise ModelError(
                f"{self.base_url}: none of {len(requests)} requests were answered; the first error: {errors[0]}"
            )
        return dict(sorted(errors.items()))

    async def _patiently(self, client: Any, key: str, body: Body) -> Answer:
        """Send one request until it is answered, refused, or tried often enough.

        Not by the library's own retries: their waits are fixed (half a second to 8 s) where ours are settings, what
        they make of a long ``Retry-After`` differs by version, and none of their attempts is counted or has an end in
        time.
        """
        import openai

        # As it was sent: the library's own types would take any JSON for a completion.
        create = client.chat.completions.with_raw_response.create
        further = {name: value for name, value in body.items() if name not in ("model", "messages")}
        said = ""
        for attempt in range(self._calls.retries + 1):
            asked = 0.0
            self._usage.requests += 1
            try:
                async with asyncio.timeout(self._calls.timeout):  # the library's own begins anew with every byte
                    response = await create(model=body["model"], messages=body["messages"], extra_body=further)
                return _read(response.content, key)
            except openai.APIStatusError as error:
                status = error.status_code
                said = f"HTTP {status}{_message(error.body, key)}"
                if status in REFUSED:
                    raise ModelError(f"{self.base_url}: {said}") from None
                if status not in PASSING and status < 500:
                    raise EmbeddingError(said) from None
                asked = retry_after(error.response.headers)
            except (openai.APITimeoutError, TimeoutError):
                said = f"no answer within {self._calls.timeout:g} s"
            except openai.APIConnectionError as error:
                cause = error.__cause__ or error
                said = hide(f"connection failed: {type(cause).__name__}: {cause}", key)
            if asked > self._calls.longest_wait:
                raise TransientError(f"{said}; asked to wait {asked:g} s, which is more than longest_wait")
            if attempt < self._calls.retries:
                own = min(self._calls.first_wait * 2**attempt, self._calls.longest_wait)
                # Jitter, so that requests refused together do not come back together.
                await asyncio.sleep(max(asked, own * SystemRandom().uniform(0.5, 1)))
        raise TransientError(f"{said} (after {self._calls.retries + 1} attempts)")


def _run(main: Coroutine[Any, Any, T]) -> T:
    """Run ``main`` to its end, also where this thread runs a loop already, as a notebook's does."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(main)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, main).result()


def _read(content: bytes, key: str) -> Answer:
    """Return what a chat completion says.

    Raises:
        EmbeddingError: it is none, or says nothing.
    """
    try:
        completion = _Completion.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise EmbeddingError(
            f"the answer is not a chat completion: {where + ': ' if where else ''}{first['msg']}"
        ) from None
    choice, usage = completion.choices[0], completion.usage or _Usage()
    text = hide((choice.message.content or "").strip(), key)
    if not text or choice.finish_reason == "content_filter":
        why = choice.message.refusal or choice.finish_reason or "no reason given"
        raise EmbeddingError(f"the answer is empty ({hide(why, key)[:LONGEST_MESSAGE]})")
    return Answer(text=text, prompt_tokens=usage.prompt_tokens or 0, completion_tokens=usage.completion_tokens or 0)


def _message(body: object, key: str) -> str:
    """Return what an error response says, if anything, in one line."""
    said = body.get("message", body) if isinstance(body, Mapping) else body
    line = " ".join(hide(str(said or ""), key).split())
    return f": {line[:LONGEST_MESSAGE]}" if line else ""


def hide(text: str, key: str) -> str:
    """Return ``text`` without the key, which an endpoint may repeat."""
    return text.replace(key, "(key)") if len(key) >= SHORTEST_KEY else text


def retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds that a response asks to wait (RFC 9110, section 10.2.3: seconds or a date), or 0."""
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0
