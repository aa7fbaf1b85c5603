"""Shards go through steps: those that are not done yet, on any engine, one file per shard and step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nemo_mm_rank.models import loader
from nemo_mm_rank.run.engine import Engine
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.run.progress import Reporter
from nemo_mm_rank.run.store import Chain, Shards, Stage, digest
from nemo_mm_rank.steps import Step


def take_through(
    steps: Sequence[Step], shards: Shards, pairs: int, folder: RunFolder, engine: Engine, reporter: Reporter
) -> Shards:
    """Take all shards through some steps, those that are not done yet, and return them with the columns added.

    Args:
        steps: one after the other, shard by shard.
        shards: as they are before.
        pairs: how many they hold.
        folder: of the run.
        engine: where the work is done.
        reporter: where progress goes.
    """
    # Models compute in another type on another kind of device, so a run goes on only on the kind that it began on.
    device = torch.device(loader.pick_device(engine.device)).type
    stages = []
    for step in steps:
        identity = digest([step.identity(), device])
        stage = folder.stage(step.name, identity)
        stages.append(Stage(step, shards, stage, identity, engine.backend, engine.device))
        shards = shards.then(stage)
    # Shard by shard through all of them: what one step has embedded, the next one still remembers.
    chain = Chain(tuple(stages))
    todo = [part for part in range(shards.count) if not chain.done(part)]
    done = pairs - sum(shards.rows(part) for part in todo)
    with reporter.step(chain.name, pairs, done) as advance:
        for _, rows in engine.map(chain, todo):
            advance(rows)
    return shards
