"""Sound: rates, depths, channels, damage, and which samples a span keeps."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest

from nemo_mm_rank import modality
from nemo_mm_rank.errors import MediaError
from nemo_mm_rank.media.audio import decode_audio, to_samples
from nemo_mm_rank.media.opener import Opener
from nemo_mm_rank.media.segment import Audio

WriteSound = Callable[..., Path]
RATE = 16_000
ALL = to_samples(None, RATE, 3600)


def tone(hertz: float, seconds: float, rate: int, height: float = 0.5) -> npt.NDArray[np.float64]:
    return height * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def pcm(samples: npt.NDArray[np.float64]) -> npt.NDArray[np.int16]:
    return np.rint(samples * 32767).astype(np.int16)


def decode(path: Path, spans: list[tuple[float, float]] | None = None, limit: float = 3600) -> npt.NDArray[np.float32]:
    with path.open("rb") as file:
        return decode_audio(file, RATE, to_samples(spans, RATE, limit))


def pitch(samples: npt.NDArray[np.float32]) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(spectrum.argmax() * RATE / len(samples))


def middle(samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return samples[400:-400]  # a resampler cannot know what lies beyond the ends


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 96_000])
def test_rates(write_wav: WriteSound, rate: int) -> None:
    samples = decode(write_wav(pcm(tone(440, 2.5, rate)), rate))
    assert samples.dtype == np.float32
    assert samples.shape == (2.5 * RATE,)
    np.testing.assert_allclose(middle(samples), middle(tone(440, 2.5, RATE).astype(np.float32)), atol=2e-4)


def test_eight_bits(write_wav: WriteSound) -> None:
    samples = decode(write_wav(np.array([0, 64, 128, 192, 255] * 100, dtype=np.uint8)))
    assert samples[:5].tolist() == [-1, -0.5, 0, 0.5, 127 / 128]


def test_64_bits(tmp_path: Path, write_wav: WriteSound) -> None:
    """Whole numbers and floats of 64 bits, and the containers of 64-bit sizes, each with two channels."""
    left = tone(440, 0.5, RATE)
    samples = np.stack([left, left / 2], axis=1)
    path = write_wav(np.zeros((len(left), 2), np.int16))
    whole = path.read_bytes()
    form = struct.pack("<HHIIHH", 1, 2, RATE, 16 * RATE, 16, 64)
    content = np.rint(samples * 2.0**63).astype("<i8").tobytes()
    head = whole[:20] + form + b"data" + struct.pack("<I", len(content))
    path.write_bytes(head[:4] + struct.pack("<I", len(head) - 8 + len(content)) + head[8:] + content)
    np.testing.assert_allclose(decode(path), 0.75 * left, atol=1e-6)
    soundfile = pytest.importorskip("soundfile", reason="needs soundfile, to write what Python cannot")
    for container, kind in (("WAV", "DOUBLE"), ("RF64", "PCM_16"), ("RF64", "DOUBLE"), ("W64", "PCM_24")):
        soundfile.write(tmp_path / "x", samples, RATE, format=container, subtype=kind)
        np.testing.assert_allclose(decode(tmp_path / "x"), 0.75 * left, atol=1e-4)


@pytest.mark.filterwarnings("error")
def test_numbers_that_no_float_of_32_bits_holds_are_refused_without_a_warning(tmp_path: Path) -> None:
    content = np.full(8_000, 1e300, "<f8").tobytes()
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 3, 1, RATE, 8 * RATE, 8, 64)
    head = b"RIFF" + struct.pack("<I", 36 + len(content)) + b"WAVE" + form + b"data" + struct.pack("<I", len(content))
    (tmp_path / "a.wav").write_bytes(head + content)
    with pytest.raises(MediaError, match="samples that are not numbers"):
        decode(tmp_path / "a.wav")


def test_channels_are_averaged(write_wav: WriteSound) -> None:
    six = np.stack([np.full(1000, value, np.int16) for value in (6000, 0, -3000, 12_000, 0, 3000)], axis=1)
    np.testing.assert_allclose(decode(write_wav(six)), 3000 / 32768, rtol=1e-6)
    loud = np.stack([pcm(tone(300, 1, RATE, 0.9))] * 2, axis=1)
    assert np.abs(decode(write_wav(loud)) - tone(300, 1, RATE, 0.9)).max() < 1e-4  # not clipped by a sum


def test_silence_is_data(write_wav: WriteSound) -> None:
    samples = decode(write_wav(np.zeros(RATE, np.int16)))
    assert samples.shape == (RATE,)
    assert not samples.any()


def test_spans_keep_exactly_their_seconds(write_wav: WriteSound) -> None:
    path = write_wav(np.concatenate([pcm(tone(200 + 100 * second, 1, 44_100)) for second in range(8)]), 44_100)
    whole = decode(path)
    assert len(whole) == 8 * RATE
    kept = decode(path, [(1, 2), (3.5, 5), (6.25, 6.5)])
    assert len(kept) == 2.75 * RATE
    assert round(pitch(kept[:RATE])) == 300
    assert round(pitch(kept[24_000:40_000])) == 600
    cut = np.concatenate([whole[RATE : 2 * RATE], whole[56_000 : 5 * RATE], whole[100_000:104_000]])
    np.testing.assert_array_equal(kept, cut)


@pytest.mark.parametrize("spans", [[(1, 2)], [(0.5, 1), (1.25, 3)], [(0, 1.00003), (2.5, 4)]])
def test_what_is_cut_has_the_samples_and_the_key_of_what_is_decoded_alone(
    write_wav: WriteSound, spans: list[tuple[float, float]]
) -> None:
    path = write_wav(pcm(tone(440, 3, 44_100)), 44_100)
    opener, sound = Opener(), modality.of("audio")
    cut = sound.cut(opener.open(path.name, modality="audio", root=str(path.parent)), spans)
    alone = opener.open(path.name, "audio", spans, str(path.parent))
    assert isinstance(cut, Audio)
    assert isinstance(alone, Audio)
    np.testing.assert_array_equal(cut.samples, alone.samples)
    assert (cut.key, cut.start) == (alone.key, alone.start)


def test_a_span_that_runs_over_the_end_is_clipped_and_one_behind_it_refused(write_wav: WriteSound) -> None:
    path = write_wav(pcm(tone(440, 2, RATE)))
    assert len(decode(path, [(1.5, 9)])) == RATE / 2
    with pytest.raises(MediaError, match=r"behind its end at 2\.000 s"):
        decode(path, [(3, 4)])


def test_only_so_many_seconds_are_decoded(write_wav: WriteSound) -> None:
    path = write_wav(pcm(tone(440, 5, 8000)), 8000)
    assert len(decode(path, limit=1.5)) == 1.5 * RATE
    with pytest.raises(MediaError):
        decode(path, [(2, 3)], limit=1.5)


def test_cut_short_keeps_what_is_there(write_wav: WriteSound) -> None:
    path = write_wav(pcm(tone(440, 4, RATE)))
    whole = path.read_bytes()
    path.write_bytes(whole[: 44 + 2 * RATE])
    np.testing.assert_array_equal(decode(path), pcm(tone(440, 1, RATE)).astype(np.float32) / 32768)


def test_a_header_that_promises_too_much_is_not_believed(write_wav: WriteSound) -> None:
    path = write_wav(pcm(tone(440, 1, RATE)))
    whole = path.read_bytes()
    for size in (0, 100, 0x7FFFFFFF, 0xFFFFFFFF):
        path.write_bytes(whole[:40] + struct.pack("<I", size) + whole[44:])
        assert 0 < len(decode(path)) <= RATE
    assert len(decode(path)) == RATE


@pytest.mark.parametrize("rate", [0, 1, 0x7FFFFFFF])
def test_a_rate_that_cannot_be_is_refused(write_wav: WriteSound, rate: int) -> None:
    path = write_wav(pcm(tone(440, 1, RATE)))
    whole = path.read_bytes()
    path.write_bytes(whole[:24] + struct.pack("<I", rate) + whole[28:])
    with pytest.raises(MediaError):
        decode(path)


@pytest.mark.parametrize("keep", [45, 44, 20])
def test_no_samples(write_wav: WriteSound, keep: int) -> None:
    path = write_wav(pcm(tone(440, 1, RATE)))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(MediaError):
        decode(path)


def test_zero_length(write_wav: WriteSound) -> None:
    with pytest.raises(MediaError, match="no audio that can be decoded"):
        decode(write_wav(np.zeros(0, np.int16)))


def float_wav(samples: npt.NDArray[np.float32]) -> io.BytesIO:
    data = samples.astype("<f4").tobytes()
    form = struct.pack("<HHIIHH", 3, 1, RATE, 4 * RATE, 4, 32)
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    return io.BytesIO(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks)


def test_floats_stay_in_range_and_must_be_numbers() -> None:
    loud = np.array([0.25, 3.0, -7.0] * 1000, np.float32)
    assert decode_audio(float_wav(loud), RATE, ALL)[:3].tolist() == [0.25, 1, -1]
    loud[1500] = np.nan
    with pytest.raises(MediaError, match="not numbers"):
        decode_audio(float_wav(loud), RATE, ALL)


@pytest.mark.parametrize(
    "content",
    [
        b"plain text, not sound " * 50,
        b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nother.wav\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile other.wav\n",
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=audio 5004 RTP/AVP 0\n",
    ],
)
def test_what_is_no_sound_or_only_points_to_some_is_refused(
    write_wav: WriteSound, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.chdir(write_wav(pcm(tone(440, 1, RATE)), name="other.wav").parent)
    with pytest.raises(MediaError, match="cannot be opened as audio"):
        decode_audio(io.BytesIO(content), RATE, ALL)


def test_a_picture_or_silent_film_has_no_sound(write_video: Callable[..., Path]) -> None:
    with write_video(count=3).open("rb") as file, pytest.raises(MediaError, match="no audio stream"):
        decode_audio(file, RATE, ALL)


@pytest.mark.parametrize(("container", "codec"), [("flac", "flac"), ("mp3", "libmp3lame"), ("ogg", "libopus")])
def test_coded_sound(tmp_path: Path, container: str, codec: str) -> None:
    path = tmp_path / "a.bin"
    with av.open(str(path), "w", format=container) as out:
        stream: Any = out.add_stream(codec, rate=48_000, layout="stereo")
        resampler = av.AudioResampler(stream.codec_context.format, "stereo", 48_000, stream.codec_context.frame_size)
        sound = np.stack([tone(500, 3, 48_000)] * 2).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(sound, format="fltp", layout="stereo")
        frame.sample_rate = 48_000
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            out.mux(stream.encode(part))
        out.mux(stream.encode(None))
    samples = decode(path)
    assert abs(len(samples) - 3 * RATE) <= 0.05 * RATE
    assert round(pitch(samples[RATE : 2 * RATE])) == 500
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2 : len(damaged) // 2 + 300] = bytes(300)
    path.write_bytes(damaged)
    assert len(decode(path)) > 1.4 * RATE


def test_channels_that_cancel_each_other_out_leave_the_loudest(write_wav: WriteSound) -> None:
    one = tone(440, 3, RATE)
    for louder, other in ((one, -one), (one, -0.95 * one), (0.5 * one, -0.45 * one)):
        samples = decode(write_wav(pcm(np.stack([other, louder], 1)), RATE))
        np.testing.assert_allclose(np.abs(samples), np.abs(louder), atol=2e-4)
    # The mean of one channel and silence is no cancelling.
    samples = decode(write_wav(pcm(np.stack([one, 0 * one], 1)), RATE))
    np.testing.assert_allclose(samples, one / 2, atol=2e-4)
    assert not decode(write_wav(pcm(np.stack([0 * one, 0 * one], 1)), RATE)).any()


def test_channels_are_judged_second_by_second_and_alike_in_every_window(write_wav: WriteSound) -> None:
    one = tone(440, 6, RATE)
    half = np.arange(len(one)) < 3 * RATE
    path = write_wav(pcm(np.stack([one, np.where(half, -one, one)], 1)), RATE)
    whole = decode(path)
    for part in (whole[: 2 * RATE], whole[-2 * RATE :]):
        assert np.sqrt(np.square(part).mean()) == pytest.approx(0.5 / np.sqrt(2), rel=0.01)
    np.testing.assert_array_equal(decode(path, [(1.0, 4.5)]), whole[RATE : int(4.5 * RATE)])
