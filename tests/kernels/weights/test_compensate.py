"""Error-compensating rounding, compiled: the reference's codes but where rounding is a toss-up."""

from __future__ import annotations

import pytest
import torch
from zoomc.kernels.weights import compensate, compensate_tir
from zoomc.kernels.weights.tables import UNIFORM, Table

TABLES = [*UNIFORM, torch.tensor([-100, -50, -7, 0, 3, 9, 50, 100]), torch.tensor([-5, 0, 2, 127])]


def table(values: torch.Tensor) -> Table:
    return Table(values.to(torch.int8), float(values.max()), "largest", torch.empty(0))


def moments(groups: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(groups, 200, 64, generator=generator)
    rows = rows @ torch.randn(groups, 64, 64, generator=generator)
    return rows.mT @ rows / 200


def block(groups: int, columns: int, taps: int) -> torch.Tensor:
    return torch.randn(64, groups, columns, taps, generator=torch.Generator().manual_seed(2))


def lost(x, codes, step, values, gram) -> float:
    difference = (values.float()[codes.long()] * step - x).flatten(2).permute(1, 2, 0)
    return float(torch.einsum("gci,gij,gcj->", difference, gram, difference))


@pytest.mark.parametrize("values", TABLES, ids=len)
@pytest.mark.parametrize(("groups", "columns", "taps"), [(1, 1, 1), (3, 7, 9), (2, 33, 1)])
def test_compiled_codes_are_the_references(values, groups, columns, taps):
    found, x, gram = table(values), block(groups, columns, taps), moments(groups)
    assert compensate_tir.available(found)
    step = x.abs().amax(dim=0) / float(values.max())
    inverse = compensate.inverse_factor(gram)
    want = compensate.compensated(x, step, found, inverse)
    got = compensate_tir.compensated(x, step, found, inverse)
    assert got.shape == want.shape and got.dtype is torch.uint8
    # A weight halfway between two values may go either way, and takes its group along.
    assert (got == want).float().mean() > 0.98
    least = lost(x, want, step, values, gram)
    assert lost(x, got, step, values, gram) < 1.02 * least
    plain = found.nearest(x, step)[0]
    assert least < 0.9 * lost(x, plain, step, values, gram)


def test_blocks_that_lie_elsewhere():
    found, gram = table(UNIFORM[1]), moments(2)
    inverse = compensate.inverse_factor(gram)
    x = block(2, 40, 3)
    step = x.abs().amax(dim=0) / 15
    want = compensate_tir.compensated(x, step, found, inverse)
    strided = x.permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0)
    assert not strided.is_contiguous()
    turned = inverse.mT.contiguous().mT
    assert torch.equal(compensate_tir.compensated(strided, step, found, turned), want)


def test_large_tables_and_unknown_cpus_take_the_reference(monkeypatch):
    large = table(torch.arange(-127, 128))
    assert not compensate_tir.available(large)
    assert compensate.rounding(large) is compensate.compensated
    small = table(UNIFORM[0])
    assert compensate.rounding(small) is compensate_tir.compensated
    monkeypatch.setattr(compensate_tir, "supported", tuple)
    assert compensate.rounding(small) is compensate.compensated
