"""Take the pool of a finished run through the modules for Curator 0.9; to be run by the interpreter that has it.

    .venv-curator09/bin/python tests/legacy/parity_run.py RUN OUTPUT [--workers N]

The run (folder of ``nemo-mm-rank curate``, by any interpreter) says which pairs, settings, models, statistics and
projection. What comes out is one Parquet file for each of its shards, with all columns of the pairs: ``pair_id``, spans
and reasons, embeddings, cosines and ``error``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import dask
from nemo_curator import Sequential
from nemo_curator.datasets import DocumentDataset
from nemo_curator.utils.distributed_utils import get_client

from nemo_mm_rank.dask.legacy import SNS, ExpertEmbedding, Match, Projection, RankScore, write_parquet
from nemo_mm_rank.run.finished import FinishedRun


def pool(run: Path) -> DocumentDataset:
    """Return the pool of a run, one partition for each of its shards."""
    files = sorted(map(str, run.glob("pool/part-*.parquet")))
    return DocumentDataset.read_parquet(files, files_per_partition=1, blocksize=None)


def modules(run: Path) -> Sequential:
    """Return a run's own steps as modules."""
    finished = FinishedRun.load(run)
    config, models = finished.config, finished.models
    return Sequential(
        [
            SNS(config, models),
            ExpertEmbedding(config, models),
            Projection(config, finished.projection),
            Match(config, finished.matcher, models),
            RankScore(config, models, finished.scoring),
        ]
    )


def main() -> None:
    """Do as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--workers", type=int, default=0, help="of a cluster; default: this thread")
    arguments = parser.parse_args()
    dataset = modules(arguments.run)(pool(arguments.run))
    if arguments.workers:
        with get_client(cluster_type="cpu", n_workers=arguments.workers) as client, client.cluster:
            write_parquet(dataset, arguments.output)
    else:
        with dask.config.set(scheduler="synchronous"):
            write_parquet(dataset, arguments.output)


if __name__ == "__main__":
    main()
