"""A part of a video as a file: the frames and the seconds of sound that lie in its windows, and no others."""

from __future__ import annotations

import io
import tarfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemo_mm_rank.config import MediaSettings
from nemo_mm_rank.errors import MediaError, UserError
from nemo_mm_rank.io.exports import Settings, export_blend
from nemo_mm_rank.media.audio import decode_audio, to_samples
from nemo_mm_rank.media.cut_video import cut_video
from nemo_mm_rank.media.video import decode_video
from nemo_mm_rank.schema import SPANS

FPS, FRAMES, RATE = 10, 40, 16_000


def make(sound: bool) -> io.BytesIO:
    """Return four seconds that grow brighter, frame by frame, and louder."""
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as out:
        picture = out.add_stream("libx264", rate=FPS)
        picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
        heard = out.add_stream("aac", rate=RATE, layout="mono") if sound else None
        for number in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 5 * number, np.uint8), "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            out.mux(picture.encode(frame))
        out.mux(picture.encode(None))
        if heard is not None:
            loud = np.repeat(np.linspace(0.02, 0.8, FRAMES), RATE // FPS) * np.sin(np.arange(4 * RATE) * 0.3)
            for start in range(0, len(loud), 1024):
                piece = loud[None, start : start + 1024].astype(np.float32)
                block = av.AudioFrame.from_ndarray(piece, format="fltp", layout="mono")
                block.sample_rate, block.pts, block.time_base = RATE, start, Fraction(1, RATE)
                out.mux(heard.encode(block))
            out.mux(heard.encode(None))
    target.seek(0)
    return target


@pytest.mark.parametrize("sound", [True, False])
def test_what_is_kept_of_a_video(sound: bool) -> None:
    out = cut_video(make(sound), [[1.0, 1.5], [3.0, 3.3]], MediaSettings())
    frames, times, duration = decode_video(out, 8, 64, None, 100, 10**7)
    assert duration == pytest.approx(0.8, abs=1e-3)
    np.testing.assert_allclose(times, np.arange(8) / FPS, atol=1e-3)
    shown = [*range(10, 15), *range(30, 33)]
    np.testing.assert_allclose(frames.mean(axis=(1, 2, 3)), 5 * np.array(shown), atol=3)
    out.seek(0)
    if not sound:
        with pytest.raises(MediaError, match="has no audio stream"):
            decode_audio(out, RATE, to_samples(None, RATE, 100))
        return
    samples = decode_audio(out, RATE, to_samples(None, RATE, 100))
    assert len(samples) / RATE == pytest.approx(0.8, abs=0.05)
    early, late = (float(np.abs(samples[int(at * RATE) :][:800]).max()) for at in (0.25, 0.65))
    assert early == pytest.approx(0.02 + 0.78 * 12 / 39, abs=0.08)
    assert late == pytest.approx(0.02 + 0.78 * 31 / 39, abs=0.12)


def test_what_cannot_be_cut() -> None:
    with pytest.raises(MediaError, match="no frame within the windows"):
        cut_video(make(sound=False), [[9.0, 10.0]], MediaSettings())
    with pytest.raises(MediaError, match="cannot be opened as video"):
        cut_video(io.BytesIO(b"no video"), [[0.0, 1.0]], MediaSettings())


@pytest.mark.parametrize("name", ["swift", "hf", "energon"])
def test_a_trimmed_video_is_written_as_it_was_ranked(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.mov").write_bytes(make(sound=True).getvalue())
    columns = {"pair_id": "v", "pool": "p", "modality": "video", "data": "a.mov", "annotation": "Bright."}
    table = pa.table({key: [value] for key, value in {**columns, "media_root": str(tmp_path)}.items()})
    table = table.append_column("sns_data_spans", pa.array([[[2.0, 2.5]]], SPANS))
    export_blend(table, tmp_path / name, name, Settings(trimmed=True))
    if name == "swift":
        content = (tmp_path / "swift/media/00000000.mp4").read_bytes()
    elif name == "hf":
        content = pq.read_table(tmp_path / "hf/data")["video"][0].as_py()["bytes"]
    else:
        content = _member(tmp_path / "energon/video/blend-000000.tar")
    frames, _, duration = decode_video(io.BytesIO(content), 5, 64, None, 100, 10**7)
    assert duration == pytest.approx(0.5, abs=1e-3)
    np.testing.assert_allclose(frames.mean(axis=(1, 2, 3)), 5 * np.arange(20, 25), atol=3)
    broken = table.set_column(3, "data", pa.array(["b.mov"]))
    (tmp_path / "b.mov").write_bytes(b"no video")
    with pytest.raises(UserError, match=r"pair 'v': 'b\.mov' .*cannot be opened as video.*nothing was exported"):
        export_blend(broken, tmp_path / "other", name, Settings(trimmed=True))


def _member(tar: Path) -> bytes:
    with tarfile.open(tar) as file:
        found = file.extractfile("00000001.mp4")
        assert found is not None
        return found.read()
