"""The job: stage after stage an adapter is trained and merged, and at the end all of them are one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from nemo_mm_rank.adapt.pairs import Pairs
from nemo_mm_rank.adapt.training import AdaptSettings, Checkpoint, StageSettings, train
from nemo_mm_rank.console import SafeConsole
from nemo_mm_rank.errors import ConfigError, DamagedError, ModelError, UserError, require
from nemo_mm_rank.imports import import_from
from nemo_mm_rank.io import mirror
from nemo_mm_rank.io.files import folder_digest, read_sealed, write_json, write_sealed, write_table
from nemo_mm_rank.io.owned import Claim, refuse_links
from nemo_mm_rank.measures.geometry import recalls
from nemo_mm_rank.models import loader, lora
from nemo_mm_rank.models.chat_encoder import ChatEncoder
from nemo_mm_rank.run.outcome import quarantined
from nemo_mm_rank.run.progress import Reporter
from nemo_mm_rank.run.store import digest
from nemo_mm_rank.steps import by_value


def measure(encoder: ChatEncoder, pairs: Pairs, rows: Sequence[int]) -> dict[str, float] | None:
    """Return recall on some pairs, or None where there are fewer than two.

    ``recall_at_1`` and ``recall_at_10`` search the data of all modalities; ``recall_at_1_same_modality`` only that of
    the pair's own, its mean over the pairs: an objective that never compares modalities shows in the difference. All
    are means of both directions.

    Args:
        encoder: as it is now.
        pairs: of the blend.
        rows: positions of held-out pairs.
    """
    good, texts, items = pairs.read(rows)
    queries, targets = encoder.encode(texts), encoder.encode(items)
    kept = [at for at in range(len(good)) if at not in queries.errors and at not in targets.errors]
    if len(kept) < 2:
        return None
    left, right = targets.vectors[kept].cpu(), queries.vectors[kept].cpu()
    found = recalls(left, right, (1, 10))
    modality = pairs.modality
    own = 0.0
    for places in by_value([modality[good[at]] for at in kept]).values():
        here = torch.tensor(places)
        own += len(places) * recalls(left[here], right[here], (1,))[1]["average"] / len(kept)
    return {
        "pairs": len(kept),
        "recall_at_1": found[1]["average"],
        "recall_at_10": found[10]["average"],
        "recall_at_1_same_modality": own,
    }


RECORD = "record.json"

_OWN = {"stages", "run", "output", "import_from", "device", "checkpoint_steps"}
"""Settings that a stage has its own of, or that change nothing of what comes out."""


@dataclass(frozen=True)
class Adapted:
    """A finished adaptation.

    Attributes:
        folder: where everything lies.
        record: settings, model, and of each stage its losses and what it did to held-out pairs.
    """

    folder: Path
    record: dict[str, Any]

    @property
    def adapter(self) -> Path:
        """All stages as one adapter of peft: what a configuration names as ``adapter`` of its ``unite`` model."""
        return self.folder / "adapter"

    def print(self, console: Console) -> None:
        """Print what each stage did, and how the adapter is used."""
        for stage in self.record["stages"]:
            said = f"{stage['name']:<17} {stage['pairs']:,} pairs, {len(stage['losses']):,} steps"
            before, after = stage["before"], stage["after"]
            for name in ("recall_at_1", "recall_at_1_same_modality", "recall_at_10"):
                if before is not None:
                    said += f"; {name} {before[name]:.3f} -> {after[name]:.3f}"
            if before is not None:
                said += f" of {before['pairs']} held-out pairs"
            console.print(said, highlight=False, markup=False, soft_wrap=True)
        console.print(f"{'adapter':<17} {self.adapter}", highlight=False, markup=False, soft_wrap=True)


def adapt(settings: AdaptSettings, console: Console | None = None, overwrite: bool = False) -> Adapted:
    """Adapt an encoder to blends, stage by stage, taking up what an earlier call in the same folder has finished.

    Every stage trains a LoRA adapter on all linear layers of the language model (query, key, value, output, gate, up
    and down projections; not the head), the vision tower and everything else frozen; then it is merged (UNITE, arXiv
    2505.19650; the authors' scripts). Annotations are the queries, data the targets.

    Args:
        settings: the whole adaptation.
        console: where progress goes.
        overwrite: whether an adaptation to other runs' blends that is in the folder may be replaced.

    Raises:
        UserError: anything that the user can mend, in one line.
    """
    require("peft", "models")
    import_from(settings.import_from)
    found = loader.find_class(settings.model.class_)
    if not issubclass(found, ChatEncoder):
        raise ConfigError(
            f"model: {settings.model.class_!r} cannot be adapted: it is not a chat encoder, such as unite"
        )
    loader.check_arguments(settings.model.class_, settings.model.arguments)
    runs = dict.fromkeys(stage.run or settings.run for stage in settings.stages)
    reporter = Reporter(console or SafeConsole(quiet=True))
    with Claim("adaptation", runs=list(runs), overwrite=overwrite).held(settings.output) as folder:
        refuse_links(folder, ("stages", "adapter"))
        return _Adaptation(settings, folder, reporter, found).adapt()


@dataclass
class _Adaptation:
    settings: AdaptSettings
    folder: Path
    reporter: Reporter
    encoder_class: type[ChatEncoder]

    def adapt(self) -> Adapted:
        settings = self.settings
        device = loader.pick_device(settings.device)
        arguments = settings.model.arguments
        # Not by the loader, which would hand out to others what is changed here.
        encoder = self.encoder_class(**{**arguments, "device": device})
        encoder.model.requires_grad_(False)
        key = digest(
            [
                settings.model_dump(mode="json", exclude=_OWN),
                encoder.revision,
                {name: version(name) for name in ("peft", "torch", "transformers")},
            ]
        )
        records, adapters = [], []
        for number, stage in enumerate(settings.stages, 1):
            folder = self.folder / "stages" / f"{number}-{stage.name}"
            pairs = Pairs.load(stage.run or settings.run, encoder.modalities | encoder.together)
            key = digest([key, stage.model_dump(mode="json", exclude={"run"}), pairs.digest])
            record = _read(folder / RECORD)
            if record.get("key") != key or record.get("files") != _files(folder):
                record = self._learn(encoder, pairs, stage, folder, key)
            lora.merge_adapter(encoder.model, str(folder))
            records.append(record)
            adapters.append(lora.read_adapter(folder))
        weights, configured = lora.joined(adapters)
        record = {
            "settings": settings.model_dump(mode="json", by_alias=True, exclude={"output", "import_from", "device"}),
            "revision": encoder.revision,
            "stages": [{name: value for name, value in one.items() if name not in ("key", "files")} for one in records],
        }
        outcome = Adapted(self.folder, record)
        lora.write_adapter(outcome.adapter, weights, configured, str(arguments.get("path", "")))
        write_json(self.folder / "adapt.json", record)
        return outcome

    def _learn(
        self, encoder: ChatEncoder, pairs: Pairs, stage: StageSettings, folder: Path, key: str
    ) -> dict[str, Any]:
        """Train one stage, and write its adapter, what was left out, and the record that vouches for both."""
        settings = self.settings
        mirror.unlink(folder / RECORD)
        learnt, held_out = pairs.split(settings.held_out, settings.max_held_out, settings.seed)
        if len(learnt) < 2:
            raise UserError(f"stage {stage.name!r}: fewer than two pairs are left to learn from")
        before = measure(encoder, pairs, held_out)
        configured = lora.adapter_settings(encoder.model, stage.rank, stage.alpha, stage.dropout)
        adapted = lora.attach(encoder.model, configured, settings.seed)
        checkpoint = Checkpoint(folder / "checkpoint.safetensors", key)
        with self.reporter.step(f"adapt: {stage.name}", stage.epochs * len(learnt)) as advance:
            losses = train(encoder, adapted, pairs, learnt, stage, settings, checkpoint, advance)
        lora.write_adapter(folder, lora.get_weights(adapted), configured, str(settings.model.arguments.get("path", "")))
        after = measure(encoder, pairs, held_out)
        adapted.unload()
        write_table(folder / "quarantine.parquet", quarantined(pairs.quarantine()))
        record = {
            "key": key,
            "files": _files(folder),
            "name": stage.name,
            "pairs": len(learnt),
            "left_out": len(pairs.left_out),
            "losses": losses,
            "before": before,
            "after": after,
        }
        write_sealed(folder / RECORD, record)
        mirror.unlink(checkpoint.path)
        return record


def _read(path: Path) -> Mapping[str, Any]:
    try:
        return read_sealed(path)
    except DamagedError:
        return {}


def _files(folder: Path) -> str:
    try:
        return folder_digest(folder, (lora.WEIGHTS, lora.CONFIG), "adapter")
    except ModelError:
        return ""
