"""The whole main job against a bare loop that decodes the same files and calls the same models in batches.

    python -m benchmarks.main_job [--runs 3]

Every run is a process of its own, the variants in turn, wall time from start to end, imports and model loading
included. The bare loop stops at the embeddings: it fits nothing and ranks nothing. Memory is the peak of the process
above what it holds once the models are loaded.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import real_pool, weights

VARIANTS = ("bare", "plain", "sns")
TITLES = {
    "bare": "bare loop: decode, same models, batches",
    "plain": "curate, without SNS",
    "sns": "curate, SNS bidirectional",
}


def _status(field: str) -> float:
    """Return a memory figure of this process from the kernel, in MiB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise KeyError(field)


def bare() -> dict[str, Any]:
    """Decode with Pillow and PyAV, call MobileNet, YAMNet and MiniLM in batches, and keep the vectors."""
    import av
    import numpy as np
    from PIL import Image as PILImage
    from sentence_transformers import SentenceTransformer

    from nemo_mm_rank.media.segment import Audio, Image, Segment, Video
    from tests.adapters import MobileNetFeatures, MobileNetWords, YamnetFeatures, YamnetWords

    folder = str(real_pool.MODELS)
    labels, sounds = MobileNetWords(folder, top=8), YamnetWords(folder)
    images, noises = MobileNetFeatures(folder), YamnetFeatures(folder)
    minilm = SentenceTransformer(weights.minilm(), device="cpu")
    loaded = _status("VmRSS")
    root = real_pool.POOL.parent

    def image(path: Path) -> Segment:
        return Image("", PILImage.open(path).convert("RGB"))

    def audio(path: Path) -> Segment:
        resampler = av.AudioResampler(format="flt", layout="mono", rate=16_000)
        with av.open(str(path)) as container:
            frames = [f for frame in container.decode(audio=0) for f in resampler.resample(frame)]
        return Audio("", np.concatenate([frame.to_ndarray().reshape(-1) for frame in frames]), 16_000)

    def video(path: Path) -> Segment:
        with av.open(str(path)) as container:
            total = sum(1 for _ in container.decode(video=0))
        wanted = {int(total * (2 * i + 1) / 16) for i in range(8)}
        with av.open(str(path)) as container:
            kept = [f for i, f in enumerate(container.decode(video=0)) if i in wanted]
        side = max(kept[0].width, kept[0].height) / 256
        small = [f.reformat(round(f.width / side), round(f.height / side), "rgb24").to_ndarray() for f in kept]
        return Video("", np.stack(small), np.arange(len(small), dtype=np.float64), float(total))

    rows = [json.loads(line) for line in real_pool.POOL.read_text(encoding="utf-8").splitlines()]
    described = [row["data"] for row in rows if row["modality"] in ("text", "code")]
    plan = (("image", image, labels, images), ("video", video, labels, images), ("audio", audio, sounds, noises))
    for modality, opened, describer, encoder in plan:
        paths = [root / row["data"] for row in rows if row["modality"] == modality]
        for start in range(0, len(paths), 64):
            segments = [opened(path) for path in paths[start : start + 64]]
            described += [text or "" for text in describer.describe(segments, modality).texts]
            encoder.encode(segments, modality)
    for texts in (described, [row["annotation"] for row in rows]):
        minilm.encode(texts, batch_size=64, normalize_embeddings=True, convert_to_tensor=True, show_progress_bar=False)
    return {"above_models": _status("VmHWM") - loaded}


def ours(sns: str) -> dict[str, Any]:
    """Run the main job as the command line does."""
    from rich.console import Console

    from nemo_mm_rank.api import curate
    from nemo_mm_rank.config import Config, parse
    from nemo_mm_rank.experts.step import ExpertStep

    with tempfile.TemporaryDirectory() as folder:
        config = parse(Config, real_pool.settings(folder, sns=sns))
        ExpertStep(config.experts, config.models, config.anchor, config.media).setup()
        loaded = _status("VmRSS")
        result = curate(config=config, progress=False)
        result.print(Console(stderr=True, width=110))
        timings = json.loads((Path(folder) / "timings.json").read_text(encoding="utf-8"))
        steps = result.manifest["counts"]["steps"]
    return {"above_models": _status("VmHWM") - loaded, "timings": timings, "steps": steps}


def _child(variant: str, quiet: bool) -> dict[str, Any]:
    started = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.main_job", "--child", variant]
    errors = subprocess.DEVNULL if quiet else None
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True, check=True)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, **json.loads(done.stdout.splitlines()[-1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--child", choices=VARIANTS)
    options = parser.parse_args()
    if options.child:
        result = bare() if options.child == "bare" else ours("off" if options.child == "plain" else "bidirectional")
        print(json.dumps(result))
        return
    if reason := real_pool.missing():
        sys.exit(f"skipped: {reason}")
    runs: dict[str, list[dict[str, Any]]] = {variant: [] for variant in options.variants}
    for number in range(options.runs):
        for variant in options.variants:
            runs[variant].append(_child(variant, quiet=number + 1 < options.runs))
    print("| variant | median s | min s | max s | ratio to bare | peak above models, MiB |")
    print("|---|---|---|---|---|---|")
    for variant, results in runs.items():
        seconds = [result["seconds"] for result in results]
        ratio = "-"
        if "bare" in runs:
            ratios = [a["seconds"] / b["seconds"] for a, b in zip(results, runs["bare"], strict=True)]
            ratio = f"{statistics.median(ratios):.2f}"
        memory = max(result["above_models"] for result in results)
        row = (TITLES[variant], f"{statistics.median(seconds):.1f}", f"{min(seconds):.1f}", f"{max(seconds):.1f}")
        print(f"| {' | '.join(row)} | {ratio} | {memory:,.0f} |")
    for variant, results in runs.items():
        if "timings" in results[-1]:
            took = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in results[-1]["timings"].items())
            print(f"\n{TITLES[variant]}: {took}")


if __name__ == "__main__":
    main()
