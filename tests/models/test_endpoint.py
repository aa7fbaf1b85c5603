from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import time
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image as PILImage

from nemo_mm_rank.api import curate
from nemo_mm_rank.config import Config, ModelSpec, parse
from nemo_mm_rank.errors import EmbeddingError, ModelError, StorageError, TransientError
from nemo_mm_rank.io.files import read_sealed
from nemo_mm_rank.media.segment import Audio, Image, Video
from nemo_mm_rank.models import loader
from nemo_mm_rank.models.endpoint import EndpointDescriber
from nemo_mm_rank.models.endpoint_client import retry_after
from nemo_mm_rank.models.expert import load_describer
from tests.models.chat_server import ChatServer, Reply, chat_server, completion, seen

pytest.importorskip("openai", reason="needs the extra 'models'")

KEY = "sk-test-0123456789abcdef-secret"
VARIABLE = "TEST_ENDPOINT_KEY"
QUICK = {"first_wait": 0.001, "retries": 2, "concurrency": 1}


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chat_server() as running:
        yield running


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY)


def describer(server: ChatServer, **changes: Any) -> EndpointDescriber:
    arguments = {"model": "vision", "base_url": server.url, "key_variable": VARIABLE, "calls": QUICK, **changes}
    return EndpointDescriber(**arguments)


def picture(number: int) -> Image:
    return Image(f"picture {number}", PILImage.new("RGB", (40 + number, 30), "teal"))


def message(server: ChatServer, row: int = -1) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = server.bodies[row]["messages"][0]["content"]
    return content


def opened(part: dict[str, Any]) -> PILImage.Image:
    kind, data = part["image_url"]["url"].split(",")
    found = PILImage.open(io.BytesIO(base64.b64decode(data)))
    assert kind == f"data:image/{str(found.format).lower()};base64"
    return found


def test_every_item_gets_its_own_answer(server: ChatServer) -> None:
    items = [picture(number) for number in range(9)]
    asked = describer(server, calls={**QUICK, "concurrency": 4})
    server.plan = [Reply(wait=0.05 * (number % 3)) for number in range(9)]
    described = asked.describe(items, "image")
    expected = {json.dumps(body["messages"][0]["content"][0]): seen(body) for body in server.bodies}
    assert not described.errors
    assert len(set(described.texts)) == 9 == len(expected)
    alone = [describer(server).describe([item], "image").texts[0] for item in items]
    assert described.texts == alone
    assert server.most_at_once <= 4
    assert set(server.paths) == {"/v1/chat/completions"}
    assert {headers["authorization"] for headers in server.headers} == {f"Bearer {KEY}"}


def test_what_is_sent(server: ChatServer) -> None:
    asked = describer(
        server,
        prompt={"image": "What is it?"},
        focus="the weather",
        generation={"seed": 3, "temperature": None},
        media={"max_side": 64},
        modalities=["image", "video", "audio"],
    )
    asked.describe([Image("wide", PILImage.new("RGB", (400, 100), "red"))], "image")
    body = server.bodies[0]
    assert {key: value for key, value in body.items() if key != "messages"} == {
        "model": "vision",
        "max_tokens": 200,
        "seed": 3,
    }
    shown, question = message(server)
    assert question == {"type": "text", "text": "What is it? Above all, attend to this: the weather"}
    assert (opened(shown).size, opened(shown).format) == ((64, 16), "JPEG")

    frames = np.stack([np.full((30, 40, 3), level, dtype=np.uint8) for level in (0, 120, 240)])
    asked.describe([Video("v", frames, np.arange(3.0), 3.0)], "video")
    *parts, question = message(server)
    assert [opened(part).getpixel((5, 5)) for part in parts] == [(level,) * 3 for level in (0, 120, 240)]
    assert question["text"].startswith("These are frames of one video")

    asked.describe([Audio("a", np.array([0, 0.5, -1, 2], dtype=np.float32), 16_000)], "audio")
    part = message(server)[0]
    assert (part["type"], part["input_audio"]["format"]) == ("input_audio", "wav")
    with wave.open(io.BytesIO(base64.b64decode(part["input_audio"]["data"]))) as file:
        assert file.getparams()[:4] == (1, 2, 16_000, 4)
        assert np.frombuffer(file.readframes(4), "<i2").tolist() == [0, 16384, -32767, 32767]


def test_pictures_are_shrunk_until_they_fit_and_carry_nothing_else(server: ChatServer) -> None:
    noise = PILImage.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))
    noise.info.update(icc_profile=b"profile", comment=b"where I live")
    for image_format in ("jpeg", "png"):
        asked = describer(server, media={"max_bytes": 40_000, "image_format": image_format})
        asked.describe([Image(image_format, noise)], "image")
        data = base64.b64decode(message(server)[0]["image_url"]["url"].split(",")[1])
        assert 10_000 < len(data) <= 40_000
        assert b"profile" not in data
        assert b"where I live" not in data
        asked.describe([Image(image_format, noise)], "image")
        assert server.bodies[-1] == server.bodies[-2]
    tight = describer(server, media={"max_bytes": 1024, "image_format": "png"})
    requests = len(server.bodies)
    described = tight.describe([Image("noise", noise)], "image")
    unfit = "vision: even scaled down to 64 pixels, the image does not fit the 1,024 bytes allowed"
    assert str(described.errors[0]) == unfit
    assert len(server.bodies) == requests


def test_a_recording_that_is_too_long_fails_alone(server: ChatServer) -> None:
    asked = describer(server, modalities=["audio"], media={"max_seconds": 1})
    sounds = [Audio(str(n), np.zeros(n, dtype=np.float32), 16_000) for n in (16_000, 40_000)]
    described = asked.describe(sounds, "audio")
    assert list(described.errors) == [1]
    assert "2 s of audio are more than the 1 allowed (media.max_seconds)" in str(described.errors[1])
    assert described.texts[0] is not None


RECOVERS = {
    "408": Reply(408),
    "425": Reply(425),
    "429": Reply(429, {"error": {"message": "slow down"}}, {"Retry-After": "0"}),
    "429 with a wait": Reply(429, {"error": {"message": "slow down"}}, {"Retry-After": "0.02"}),
    "500": Reply(500, b"<html>oops</html>"),
    "503": Reply(503),
    "cut before": Reply(cut="before"),
    "cut within": Reply(cut="within"),
    "slow": Reply(wait=30),
    "dripping": Reply(drip=0.1),
}


@pytest.mark.parametrize("reply", RECOVERS.values(), ids=RECOVERS.keys())
def test_what_passes_is_tried_again(server: ChatServer, reply: Reply) -> None:
    server.plan = [reply]
    asked = describer(server, calls={**QUICK, "timeout": 1.5 if reply.wait or reply.drip else 60})
    described = asked.describe([picture(1)], "image")
    assert described.texts == [seen(server.bodies[1])]
    assert not described.errors
    assert len(server.bodies) == 2 == asked.usage.requests
    assert server.bodies[0] == server.bodies[1]


FAILS = {
    "slow": (Reply(wait=30), 3, "no answer within 1.5 s (after 3 attempts)"),
    "cut": (Reply(cut="before"), 3, "connection failed: RemoteProtocolError: Server disconnected without sending"),
    "429": (
        Reply(429, {"error": {"message": f"slow down, {KEY}"}}),
        3,
        "HTTP 429: slow down, (key) (after 3 attempts)",
    ),
    "429 for long": (
        Reply(429, {}, {"Retry-After": "3600"}),
        1,
        "HTTP 429; asked to wait 3600 s, which is more than longest_wait",
    ),
    "500": (Reply(500, b"oops\nand more"), 3, "HTTP 500: oops and more (after 3 attempts)"),
    "400": (Reply(400, {"error": {"message": "image too large"}}), 1, "HTTP 400: image too large"),
    "413": (Reply(413, b"x" * 900), 1, f"HTTP 413: {'x' * 200}"),
    "422": (Reply(422, {"detail": "no"}), 1, "HTTP 422: {'detail': 'no'}"),
    "redirect": (Reply(307, b"", {"Location": "http://127.0.0.1:9/"}), 1, "HTTP 307"),
    "garbage": (Reply(body=b"\xff\x00 not json"), 1, "the answer is not a chat completion: Invalid JSON"),
    "other schema": (
        Reply(body={"choices": "none"}),
        1,
        "the answer is not a chat completion: choices: Input should be",
    ),
    "no choice": (Reply(body={"choices": []}), 1, "the answer is not a chat completion: choices: List should have"),
    "content of another type": (
        Reply(body={"choices": [{"message": {"content": [1]}}]}),
        1,
        "the answer is not a chat completion: choices.0.message.content: Input should be a valid string",
    ),
    "empty": (Reply(body=completion("  \n")), 1, "the answer is empty (stop)"),
    "none": (Reply(body=completion(None, "length")), 1, "the answer is empty (length)"),
    "filtered": (Reply(body=completion("half", "content_filter")), 1, "the answer is empty (content_filter)"),
}


@pytest.mark.parametrize(("reply", "requests", "reason"), FAILS.values(), ids=FAILS.keys())
def test_what_does_not_pass_is_that_items_error(
    server: ChatServer, reply: Reply, requests: int, reason: str, tmp_path: Path
) -> None:
    server.plan = [Reply(), *[reply] * requests]
    asked = describer(server, calls={**QUICK, "timeout": 1.5 if reply.wait or reply.drip else 60}, cache=str(tmp_path))
    described = asked.describe([picture(0), picture(1), picture(2)], "image")
    assert len(server.bodies) == 2 + requests == asked.usage.requests
    assert list(described.errors) == [1]
    passing = any(word in reason for word in ("attempts)", "asked to wait", "connection failed"))
    assert type(described.errors[1]) is (TransientError if passing else EmbeddingError)
    assert str(described.errors[1]).startswith(f"vision: {reason}")
    assert described.texts == [seen(server.bodies[0]), None, seen(server.bodies[-1])]
    again = describer(server, cache=str(tmp_path)).describe([picture(1)], "image")
    assert again.texts == [seen(server.bodies[-1])]
    assert len(server.bodies) == 3 + requests


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_an_endpoint_that_refuses_stops_the_run(server: ChatServer, status: int) -> None:
    server.plan = [Reply(status, {"error": {"message": f"Incorrect API key provided: {KEY}."}})]
    with pytest.raises(ModelError) as caught:
        describer(server).describe([picture(0), picture(1)], "image")
    assert str(caught.value) == f"{server.url}: HTTP {status}: Incorrect API key provided: (key)."
    assert len(server.bodies) == 1


def test_an_endpoint_that_answers_no_one_stops_the_run(server: ChatServer) -> None:
    server.plan = [Reply(503)] * 6
    with pytest.raises(
        ModelError,
        match=r"none of 2 requests were answered; the first error: HTTP 503 \(after 3 "
        r"attempts\)",
    ):
        describer(server).describe([picture(0), picture(1)], "image")
    assert len(server.bodies) == 6
    url = server.url
    server.shutdown()
    server.server_close()
    nobody = EndpointDescriber("vision", base_url=url, calls=QUICK)
    with pytest.raises(
        ModelError, match="none of 2 requests were answered; the first error: connection failed: ConnectError"
    ):
        nobody.describe([picture(0), picture(1)], "image")
    assert nobody.usage.requests == 6


def test_the_key_is_in_no_text_that_comes_out(
    server: ChatServer, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    echo = {"error": {"message": f"bad key {KEY}", "headers": {"Authorization": f"Bearer {KEY}"}}}
    server.plan = [
        Reply(500, echo),
        Reply(body=completion(f"your key is {KEY}")),
        Reply(400, echo),
        Reply(400, KEY.encode()),
        Reply(cut="before"),
        Reply(body=completion(None, KEY)),
    ]
    asked = describer(server, cache=str(tmp_path))
    described = asked.describe([picture(number) for number in range(5)], "image")
    assert described.texts[0] == "your key is (key)"
    assert len(described.errors) == 3
    server.plan = [Reply(401, echo)]
    with pytest.raises(ModelError) as caught:
        asked.describe([picture(9)], "image")
    pickled = pickle.dumps([asked, caught.value, described.errors])
    out = capfd.readouterr()
    everything = [
        caplog.text,
        out.out,
        out.err,
        repr(asked),
        repr(vars(asked)),
        str(asked.usage),
        repr(described),
        repr(caught.value),
        pickled.decode("latin-1"),
        *(file.read_text(encoding="utf-8") for file in tmp_path.rglob("*.json")),
    ]
    assert "HTTP Request: POST" in caplog.text
    assert len(list(tmp_path.rglob("*.json"))) == 2
    assert not [text for text in everything if KEY in text]


def test_a_key_is_only_named(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="key_variable is the name of an environment variable") as caught:
        describer(server, key_variable=KEY)
    assert KEY not in str(caught.value)
    monkeypatch.setenv(VARIABLE, " ")
    with pytest.raises(
        ModelError, match=f"the environment variable {VARIABLE} must contain the key, and it is not set"
    ):
        describer(server)
    for url in (f"https://user:{KEY}@host/v1", f"https://host/v1?key={KEY}"):
        with pytest.raises(ModelError, match="put the key into an environment variable") as caught:
            EndpointDescriber("vision", base_url=url)
        assert KEY not in str(caught.value)
    with pytest.raises(ModelError, match="must be an http or https URL"):
        EndpointDescriber("vision", base_url="file:///etc/passwd")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ModelError, match="OPENAI_API_KEY"):
        EndpointDescriber("vision")


def test_openais_key_is_sent_to_no_one_else(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    EndpointDescriber("vision", base_url=server.url).describe([picture(0)], "image")
    assert server.headers[0]["authorization"] == "Bearer none"


def test_answers_are_kept_by_all_that_they_depend_on(server: ChatServer, tmp_path: Path) -> None:
    def ask(**changes: Any) -> list[str | None]:
        return describer(server, cache=str(tmp_path), **changes).describe([picture(0), picture(1)], "image").texts

    texts = ask()
    assert len(server.bodies) == 2
    assert ask() == texts
    assert ask(calls={**QUICK, "retries": 9}, name="another", key_variable=None) == texts
    assert len(server.bodies) == 2
    others: list[dict[str, Any]] = [
        {"model": "other"},
        {"prompt": "What?"},
        {"focus": "dogs"},
        {"generation": {"max_tokens": 9}},
        {"media": {"max_side": 100}},
        {"base_url": server.url.replace("127.0.0.1", "localhost")},
    ]
    for number, changes in enumerate(others, start=2):
        ask(**changes)
        assert len(server.bodies) == 2 * number, changes
    asked = describer(server, cache=str(tmp_path))
    asked.describe([picture(0), picture(5), picture(1)], "image")
    assert (asked.usage.requests, asked.usage.answers, asked.usage.kept) == (1, 1, 2)


def test_an_answer_that_cannot_be_read_is_asked_for_again(server: ChatServer, tmp_path: Path) -> None:
    texts = describer(server, cache=str(tmp_path)).describe([picture(0)], "image").texts
    file = next(tmp_path.rglob("*.json"))
    for damage in (b"", b'{"text": "ha', b'{"text": ""}', b"\xff\xfe", b"[]"):
        file.write_bytes(damage)
        requests = len(server.bodies)
        assert describer(server, cache=str(tmp_path)).describe([picture(0)], "image").texts == texts
        assert len(server.bodies) == requests + 1
        assert read_sealed(file) == {"text": texts[0], "prompt_tokens": 100, "completion_tokens": 7}


def test_of_two_answers_the_one_that_is_kept_counts(server: ChatServer, tmp_path: Path) -> None:
    server.plan = [Reply(body=completion("first"))]
    describer(server, cache=str(tmp_path)).describe([picture(0)], "image")
    file = next(tmp_path.rglob("*.json"))
    kept = file.read_bytes()
    file.unlink()
    server.plan = [Reply(body=completion("second"), wait=0.3)]
    asked = describer(server, cache=str(tmp_path))

    async def both() -> list[str | None]:
        late = asyncio.create_task(asyncio.to_thread(asked.describe, [picture(0)], "image"))
        while not server.at_once:
            await asyncio.sleep(0.01)
        file.write_bytes(kept)
        return (await late).texts

    assert asyncio.run(both()) == ["first"]
    assert file.read_bytes() == kept


def test_a_folder_that_cannot_be_written_to_stops_the_run(server: ChatServer, tmp_path: Path) -> None:
    (tmp_path / "answers").write_text("a file")
    with pytest.raises(StorageError, match="answers"):
        describer(server, cache=str(tmp_path / "answers" / "x")).describe([picture(0)], "image")


KILLED = """
import sys
from nemo_mm_rank.models.endpoint import EndpointDescriber
from tests.models.test_endpoint import picture
asked = EndpointDescriber("vision", base_url=sys.argv[1], calls={"concurrency": 3}, cache=sys.argv[2])
asked.describe([picture(number) for number in range(12)], "image")
"""


@pytest.mark.slow
def test_a_killed_process_leaves_whole_answers(server: ChatServer, tmp_path: Path) -> None:
    server.plan = [*[Reply()] * 7, *[Reply(wait=60)] * 3]
    process = subprocess.Popen([sys.executable, "-c", KILLED, server.url, str(tmp_path)])
    deadline = time.monotonic() + 240
    while len(server.bodies) < 10 or len(list(tmp_path.rglob("*.json"))) < 7:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    server.released.set()
    for file in tmp_path.rglob("*.json"):
        assert json.loads(file.read_bytes())["text"].startswith("seen ")
    requests = len(server.bodies)
    asked = EndpointDescriber("vision", base_url=server.url, calls={"concurrency": 3}, cache=str(tmp_path))
    described = asked.describe([picture(number) for number in range(12)], "image")
    assert not described.errors
    assert len(set(described.texts)) == 12
    assert len(server.bodies) - requests == 5
    assert asked.usage.kept == 7


def test_tokens_and_cost(server: ChatServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="nemo_mm_rank")
    server.plan = [Reply(500), Reply(), Reply(400)]
    asked = describer(server, prices=[2.0, 10.0])
    asked.describe([picture(0), picture(1), picture(2)], "image")
    assert (asked.usage.prompt_tokens, asked.usage.completion_tokens) == (200, 14)
    assert asked.usage.cost == pytest.approx((200 * 2 + 14 * 10) / 1e6)
    line = "4 requests, 2 answers and 0 kept ones, 200 + 14 tokens, cost 0.0005"
    assert str(asked.usage) == line
    assert f"vision so far: {line}" in caplog.text
    assert describer(server).usage.cost is None
    server.plan = [
        Reply(body={**completion("free"), "usage": {"prompt_tokens": None}}),
        Reply(body={"choices": [{"message": {"content": "bare"}}]}),
    ]
    bare = describer(server)
    assert bare.describe([picture(0), picture(1)], "image").texts == ["free", "bare"]
    assert (bare.usage.prompt_tokens, bare.usage.completion_tokens) == (0, 0)


def test_it_runs_where_a_loop_is_running(server: ChatServer) -> None:
    async def notebook() -> list[str | None]:
        return describer(server).describe([picture(0)], "image").texts

    assert asyncio.run(notebook()) == [seen(server.bodies[0])]


def test_by_its_short_name(server: ChatServer) -> None:
    models = {"captions": ModelSpec.model_validate({"class": "openai", "model": "vision", "base_url": server.url})}
    loaded = load_describer("captions", models)
    described = loaded.describe([picture(0), picture(1), picture(0)], "image")
    assert len(server.bodies) == 2
    assert described.texts[0] == described.texts[2]
    assert set(described.texts) == {seen(body) for body in server.bodies}
    assert loaded.modalities == {"image", "video"}
    assert (loaded.name, loaded.revision) == ("captions", "vision")
    assert loader.identities(models)["captions"]["revision"] == "vision"
    loader.release(models)
    with pytest.raises(Exception, match="takes no 'api_key'"):
        loader.check_arguments("openai", {"model": "vision", "api_key": KEY})


def test_settings_that_cannot_be_meant(server: ChatServer) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"modalities": ["image", "vidio"]}, "'vidio' is none of image, audio, video; did you mean 'video'"),
        ({"prompt": {"imgae": "x"}}, "'imgae' is none of image, audio, video; did you mean 'image'"),
        ({"prompt": " "}, "the one for image is empty"),
        ({"generation": {"stream": True}}, "generation must not contain stream"),
        ({"calls": {"retry": 3}}, "retry: unknown key; did you mean 'retries'"),
        ({"media": {"max_side": 1}}, "max_side: Input should be greater"),
    ]
    for changes, reason in wrong:
        with pytest.raises(ModelError) as caught:
            describer(server, **changes)
        assert reason in str(caught.value)
    with pytest.raises(ModelError, match="vision takes image, video, not audio"):
        describer(server).describe([], "audio")
    assert describer(server).describe([], "image").texts == []


def test_retry_after() -> None:
    assert retry_after({}) == 0
    assert retry_after({"retry-after": "1.5"}) == 1.5
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert retry_after({"retry-after": "Wed, 21 Oct 2099 07:28:00 GMT"}) > 1e9
    assert retry_after({"retry-after": "soon"}) == 0


def test_a_whole_run_keeps_the_key_to_itself(
    server: ChatServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    rows = []
    for number in range(12):
        picture(number).pixels.save(tmp_path / f"{number}.png")
        rows.append({"modality": "image", "data": f"{number}.png", "annotation": f"picture of width {number}"})
    (tmp_path / "pool.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    server.plan = [Reply(), Reply(400, {"error": {"message": f"no, {KEY}"}}), Reply(500, KEY.encode())]
    config = {
        "pools": str(tmp_path / "pool.jsonl"),
        "queries": "wide pictures",
        "output": str(tmp_path / "run"),
        "models": {
            "text": {"class": "hashed-text"},
            "captions": {
                "class": "openai",
                "model": "vision",
                "base_url": server.url,
                "key_variable": VARIABLE,
                "calls": QUICK,
                "cache": str(tmp_path / "answers"),
            },
        },
        "experts": [{"name": "words", "kind": "text-based", "encoder": "text", "describers": {"image": "captions"}}],
    }
    result = curate(config=parse(Config, config), progress=False)
    loader.release()
    (failed,) = pq.read_table(tmp_path / "run" / "quarantine.parquet").to_pylist()
    assert (failed["step"], failed["error"]) == ("experts", "EmbeddingError")
    assert failed["message"] == "captions: HTTP 400: no, (key)"
    assert len(server.bodies) == 13
    assert len(list((tmp_path / "answers").rglob("*.json"))) == 11
    assert result.manifest["counts"]
    files = [file for file in tmp_path.rglob("*") if file.is_file() and file.suffix != ".png"]
    assert len(files) > 15
    for file in files:
        written = file.read_bytes()
        tables = pq.read_table(file).to_pylist() if file.suffix == ".parquet" else ""
        assert KEY not in written.decode("latin-1") + str(tables), file
    assert KEY not in caplog.text
