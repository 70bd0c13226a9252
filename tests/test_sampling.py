import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rolelens.lens import sampled


def by_hand(shares: list[float], top_p: float, uniform: float) -> int:
    """The nucleus in order of probability, or the vocabulary in its order; walked through."""
    order = (
        sorted(range(len(shares)), key=lambda i: -shares[i]) if top_p < 1 else range(len(shares))
    )
    kept, mass = [], 0.0
    for i in order:
        if mass < top_p or top_p == 1:
            kept.append(i)
        mass += shares[i]
    wanted = uniform * sum(shares[i] for i in kept)
    for i in kept:
        wanted -= shares[i]
        if wanted < 0:
            return i
    return kept[-1]


@given(
    seed=st.integers(0, 10_000),
    top_p=st.sampled_from([0.1, 0.5, 0.9, 0.999, 1.0]),
    uniform=st.floats(0.001, 0.999),
    vocab=st.sampled_from([3, 50, 600]),
)
def test_a_token_is_where_the_cumulative_distribution_passes_a_number(
    seed: int, top_p: float, uniform: float, vocab: int
) -> None:
    logits = 2 * torch.randn(2, vocab, generator=torch.Generator().manual_seed(seed))
    found = sampled(logits, top_p, torch.tensor([uniform, uniform]))
    for row, shares in zip(found.tolist(), logits.double().softmax(-1).tolist(), strict=True):
        near = {by_hand(shares, top_p, uniform + shift) for shift in (-1e-5, 0.0, 1e-5)}
        assert row in near


@pytest.mark.parametrize("top_p", [0.8, 1.0])
def test_shares_are_those_of_the_nucleus(top_p: float) -> None:
    shares = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15])
    uniform = torch.linspace(0, 1, 10_001)[:-1]
    found = sampled(shares.log().expand(len(uniform), -1), top_p, uniform)
    counts = torch.bincount(found, minlength=5) / len(uniform)
    kept = shares if top_p == 1 else torch.tensor([0, 0.4, 0, 0.3, 0.15])
    torch.testing.assert_close(counts, kept / kept.sum(), atol=1e-3, rtol=0)
