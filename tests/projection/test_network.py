"""The fusion network: masks, defaults, the way round it, and weights that come from one generator alone."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

from nemo_mm_rank.frames import Vectors
from nemo_mm_rank.projection import FusionNetwork

SOURCES = {"words": 4, "a.b": 3}


def _network(depth: int = 1, skip: tuple[str, ...] = (), seed: int = 0) -> FusionNetwork:
    network = FusionNetwork(SOURCES, dim=4, hidden=6, depth=depth, dropout=0.5, skip=skip)
    network.initialise(torch.Generator().manual_seed(seed))
    return network


def _inputs(n: int = 5) -> dict[str, Vectors]:
    generator = torch.Generator().manual_seed(1)
    valid = torch.arange(n) % 2 == 0
    sight = F.normalize(torch.randn(n, 3, generator=generator), dim=1) * valid[:, None]
    return {
        "words": Vectors.full(F.normalize(torch.randn(n, 4, generator=generator), dim=1)),
        "a.b": Vectors(sight, valid),
    }


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_output_is_normalised(depth: int) -> None:
    out = _network(depth)(_inputs())
    assert out.shape == (5, 4)
    torch.testing.assert_close(out.norm(dim=1), torch.ones(5))


@pytest.mark.parametrize("depth", [0, 2])
def test_it_is_an_mlp_over_the_concatenation(depth: int) -> None:
    network, inputs = _network(depth), _inputs()
    for default in network.defaults:
        torch.nn.init.normal_(default, generator=torch.Generator().manual_seed(2))
    rows = []
    for row in range(5):
        x = network.bias.clone()
        for (name, column), layer, default in zip(inputs.items(), network.first, network.defaults, strict=True):
            size = SOURCES[name]
            x = x + (layer(column.values[row] * size**0.5) if column.valid[row] else default)
        for layer in network.rest:
            x = layer(F.gelu(x))
        rows.append(F.normalize(x, dim=0))
    torch.testing.assert_close(network(inputs), torch.stack(rows))


def test_what_stands_in_place_of_a_missing_source_does_not_matter() -> None:
    network, inputs = _network(skip=("words",)), _inputs()
    missing = ~inputs["a.b"].valid
    junk = inputs["a.b"].values.clone()
    junk[missing] = 123.0
    assert torch.equal(network({**inputs, "a.b": Vectors(junk, ~missing)}), network(inputs))


def test_without_training_it_is_the_mean_of_the_skipped_sources() -> None:
    network = FusionNetwork({"words": 4, "own": 4, "sight": 3}, 4, hidden=6, depth=1, skip=("words", "own"))
    network.initialise(torch.Generator().manual_seed(0))
    words, own = F.normalize(torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(3)), dim=2)
    there = torch.tensor([True, False, True])
    out = network(
        {
            "words": Vectors.full(words),
            "own": Vectors(own * there[:, None], there),
            "sight": Vectors(torch.zeros(3, 3), torch.zeros(3, dtype=torch.bool)),
        }
    )
    expected = torch.where(there[:, None], F.normalize(words + own, dim=1), words)
    torch.testing.assert_close(out, expected)


def test_weights_come_from_the_generator_alone() -> None:
    torch.manual_seed(1)
    one = _network(seed=4)
    torch.manual_seed(2)
    two, other = _network(seed=4), _network(seed=5)
    before = torch.get_rng_state()
    two.initialise(torch.Generator().manual_seed(4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert not torch.equal(one.state_dict()["rest.0.weight"], other.state_dict()["rest.0.weight"])


def test_dropout_is_drawn_from_the_generator_and_only_with_one() -> None:
    network, inputs = _network(), _inputs()
    dropped = [network.fuse(inputs, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(dropped[0], dropped[1])
    assert not torch.equal(dropped[0], dropped[2])
    assert torch.equal(network.fuse(inputs), network.fuse(inputs))


def test_config_makes_an_equal_network() -> None:
    network = _network(skip=("words",))
    other = FusionNetwork(**json.loads(json.dumps(network.config())))
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(_inputs()), network(_inputs()))


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="at least one source"):
        FusionNetwork({}, 4, 8, 1)
    with pytest.raises(ValueError, match=r"'a\.b' does not lie in the anchor's space of 4"):
        FusionNetwork(SOURCES, 4, 8, 1, skip=("a.b",))
