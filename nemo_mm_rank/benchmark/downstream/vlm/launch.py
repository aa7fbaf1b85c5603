"""Where a job is done: in this process, or in as many as there are GPUs, started by ``accelerate launch``."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from nemo_mm_rank.benchmark.downstream.perplexity import Perplexity
from nemo_mm_rank.benchmark.downstream.settings import VLMSettings
from nemo_mm_rank.benchmark.downstream.vlm.job import Pairs, TrainingRun
from nemo_mm_rank.benchmark.downstream.vlm.training import run
from nemo_mm_rank.errors import UserError
from nemo_mm_rank.io.files import read_sealed, write_sealed, write_text
from nemo_mm_rank.io.owned import recognised

_FOUND, _MISTAKE = "perplexity.json", "error.txt"


def train_vlm(
    pairs: Pairs,
    annotations: Sequence[str | None],
    blend_rows: Sequence[int],
    validation_rows: Sequence[int],
    settings: VLMSettings,
    seed: int,
) -> Perplexity:
    """Fine-tune the model on a blend and judge it on the validation pairs; see `downstream.train`.

    Raises:
        UserError: anything that the user can mend.
    """
    job = TrainingRun.of(pairs, annotations, blend_rows, validation_rows, settings, seed)
    count = processes(job.settings)
    if count == 1:
        return run(job)
    with tempfile.TemporaryDirectory(prefix="nemo-mm-rank-") as temporary:
        folder = Path(temporary)
        job.save(folder)
        # -P and the variable: not from the current folder, neither here nor in what this starts.
        command = [sys.executable, "-P", "-m", "accelerate.commands.launch"]
        command += ["--num_machines=1", f"--num_processes={count}"]
        # By this flag processes are started at all; whether they take GPUs they decide themselves.
        command += ["--multi_gpu", "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
        command += ["--module", "nemo_mm_rank.benchmark.downstream.vlm", temporary]
        environment = {**os.environ, "PYTHONSAFEPATH": "1"}
        done = subprocess.run(command, check=False, stdout=sys.stderr, env=environment)  # noqa: S603 (our own words)
        if (folder / _MISTAKE).exists():
            raise UserError((folder / _MISTAKE).read_text(encoding="utf-8"))
        if done.returncode:
            raise UserError(f"downstream: accelerate launch ended with {done.returncode}; see its output above")
        return Perplexity.of(read_sealed(folder / _FOUND))


def processes(settings: VLMSettings) -> int:
    """Return how many processes are to work."""
    gpus = 0 if settings.device == "cpu" else torch.cuda.device_count()
    return settings.processes or max(1, gpus)


def work(folder: Path) -> None:
    """Do one process's share of the job in a folder; the first process writes down what comes of it."""
    recognised(folder, "training")
    first = os.environ.get("RANK", "0") == "0"
    try:
        found = run(TrainingRun.load(folder))
    except UserError as error:
        write_text(folder / _MISTAKE, str(error))
        raise
    if first:
        write_sealed(folder / _FOUND, asdict(found))
