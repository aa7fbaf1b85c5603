from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from nemo_mm_rank.benchmark.downstream import train
from nemo_mm_rank.benchmark.downstream.perplexity import Perplexity, evaluation_steps, pace
from nemo_mm_rank.benchmark.downstream.settings import DownstreamSettings, OffSettings, SmallSettings
from nemo_mm_rank.benchmark.downstream.small import PrefixLM, lay_out, perplexity
from nemo_mm_rank.config import Settings, parse
from nemo_mm_rank.errors import ConfigError, UserError
from nemo_mm_rank.frames import Vectors
from tests.benchmark.downstream.made_up import QUICK, corpus, moved

BLEND, VALIDATION = range(160), range(160, 240)


def without_time(found: Perplexity) -> Perplexity:
    return dataclasses.replace(found, seconds=0.0)


def test_the_same_arguments_give_the_same_values_and_other_seeds_do_not() -> None:
    made = corpus()
    short = QUICK.model_copy(update={"steps": 12, "dropout": 0.2})
    first, again, other = (train(made, made.annotations, BLEND, VALIDATION, short, seed) for seed in (0, 0, 1))
    assert without_time(first) == without_time(again)
    assert first.values != other.values
    assert train(made, made.annotations, BLEND[::-1], VALIDATION, short, 0).values == first.values
    assert first.steps == (3, 6, 9, 12)
    assert first.tokens == (3 * 256, 6 * 256, 9 * 256, 12 * 256)
    assert first.best == min(first.values)


def test_what_else_is_drawn_in_the_process_changes_nothing() -> None:
    made = corpus()
    short = QUICK.model_copy(update={"steps": 4, "evaluations": 1, "dropout": 0.2})
    found = []
    for number in range(2):
        torch.manual_seed(number)
        found.append(train(made, made.annotations, BLEND, VALIDATION, short, 0).values)
    assert found[0] == found[1]


def test_strategies_start_alike_and_learn_from_as_many_tokens() -> None:
    made = corpus()
    still = QUICK.model_copy(update={"steps": 1, "evaluations": 1, "learning_rate": 1e-12})
    one, two = (train(made, made.annotations, rows, VALIDATION, still, 0) for rows in (range(80), range(80, 83)))
    assert one.values[0] == pytest.approx(two.values[0], rel=1e-6)
    assert one.tokens == two.tokens == (256,)


@pytest.mark.parametrize("seed", [0, 1])
def test_true_annotations_beat_exchanged_ones_and_the_prefix_is_why(seed: int) -> None:
    made = corpus()
    clean = train(made, made.annotations, BLEND, VALIDATION, QUICK, seed)
    swapped = train(made, moved(made.annotations, BLEND), BLEND, VALIDATION, QUICK, seed)
    blind = dataclasses.replace(
        made, columns=tuple(Vectors(torch.zeros_like(column.values), column.valid) for column in made.columns)
    )
    without = train(blind, made.annotations, BLEND, VALIDATION, QUICK, seed)
    # Five tokens, of which two are one of four: 1 where the features are understood, but for the row without any.
    guessed = 16 ** (1 / 5)
    assert clean.best < 1.12
    assert without.best > 0.97 * guessed
    assert swapped.best > 0.97 * guessed


def test_perplexity_is_the_exponential_of_the_mean_over_all_tokens() -> None:
    made = corpus()
    tokens = made.vocabulary.encode([text or "" for text in made.annotations], 64)
    network = PrefixLM([8, 8], len(made.vocabulary), 32, 2, 2, 4, 64, 0.0)
    network.initialise(torch.Generator().manual_seed(0))
    rows = torch.tensor([3, 50, 239, 7])
    total, count = 0.0, 0
    for row in rows.tolist():
        own = torch.tensor([row])
        batch = lay_out(tokens, own, tokens.lengths[own], 4)
        for logits, target in zip(network(made.columns, batch), batch.targets, strict=True):
            total -= float(F.log_softmax(logits.double(), dim=0)[target].detach())
            count += 1
    assert perplexity(network, made, tokens, rows) == pytest.approx(math.exp(total / count), rel=1e-5)
    torch.nn.init.zeros_(network.tokens.weight)
    assert perplexity(network, made, tokens, rows) == pytest.approx(len(made.vocabulary), rel=1e-5)


def test_rows_without_annotation_are_left_out_and_counted() -> None:
    made = corpus()
    lacking: list[str | None] = [None if row in (0, 1) else text for row, text in enumerate(made.annotations)]
    short = QUICK.model_copy(update={"steps": 2, "evaluations": 1})
    assert train(made, lacking, range(10), VALIDATION, short, 0).skipped == 2
    with pytest.raises(UserError, match="the blend has no pair with an annotation"):
        train(made, lacking, [0, 1], VALIDATION, short, 0)
    with pytest.raises(UserError, match="1 validation pairs have no annotation"):
        train(made, lacking, [3], [1, 2], short, 0)


def test_a_validation_pair_in_the_blend_is_refused() -> None:
    made = corpus()
    with pytest.raises(UserError, match="2 validation pairs are in the blend"):
        train(made, made.annotations, range(10), range(8, 20), QUICK, 0)


def test_rows_are_found_by_part_and_id() -> None:
    made = dataclasses.replace(corpus(4), parts={"pool": ["a", "b", "c"], "validation": ["a"]})
    assert made.rows("pool", ["c", "a"]) == [2, 0]
    assert made.rows("validation") == [3]
    with pytest.raises(UserError, match="validation has no pair 'b'"):
        made.rows("validation", ["b"])


def test_judging_is_spread_over_the_steps_and_ends_with_the_last() -> None:
    assert evaluation_steps(750, 3) == (250, 500, 750)
    assert evaluation_steps(3, 8) == (1, 2, 3)
    assert evaluation_steps(1, 8) == (1,)


def test_the_rate_rises_along_a_line_and_falls_along_a_cosine() -> None:
    rates = [pace(step, 100, 0.1) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0)


class Whole(Settings):
    downstream: DownstreamSettings = SmallSettings()


def test_a_model_is_chosen_by_its_kind() -> None:
    assert isinstance(parse(Whole, {}).downstream, SmallSettings)
    assert isinstance(parse(Whole, {"downstream": False}).downstream, OffSettings)  # a bare `off` in YAML
    assert isinstance(parse(Whole, {"downstream": "off"}).downstream, OffSettings)
    assert parse(Whole, {"downstream": {"steps": 3}}).downstream == SmallSettings(steps=3)
    with pytest.raises(ConfigError, match=r"stpes: unknown key; did you mean 'steps'"):
        parse(Whole, {"downstream": {"kind": "small", "stpes": 3}})
    with pytest.raises(ConfigError, match="no multiple of heads"):
        parse(Whole, {"downstream": {"width": 32, "heads": 5}})
    with pytest.raises(ConfigError, match="needs a revision"):
        parse(Whole, {"downstream": {"kind": "vlm", "model": "Qwen/Qwen2.5-Omni-3B"}})
