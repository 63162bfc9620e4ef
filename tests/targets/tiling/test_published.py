"""The planner against published and derived figures; each case names its source and its setup.

Not matched, and why:

- Eyeriss' DRAM megabytes per layer (JSSC 2017) are of compressed maps; a dense count is a different
  quantity. Its total is beaten all the same: ``test_dense_traffic_stays_below_eyeriss``.
- SmartShuttle's 434.8 and 526.3 MACs per access are counted against Eyeriss' compressed traffic.
  Dense, at 181.5 kB, 16 bit: see ``test_dense_macs_per_access``.
- ROMANet's 12/36/46 % and Zheng et al.'s 34–93 % are energy and latency against baselines whose
  setups could not be read; the DRAM tests state a baseline of their own.
- The bus-width-aware scheduler's 9–46 % (ISVLSI 2020) come without buffer, layout or baseline.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from pathlib import Path

import pytest
from zoomc.targets.tiling import (
    KIB,
    SCHEDULES,
    W4A8,
    Attention,
    Conv,
    Memory,
    Words,
    lower_bound,
    plan,
)

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
from networks import alexnet, mobilenet, resnet50, unet, vgg16

MIB = 8 * 2**20


@lru_cache
def total(network, batch: int, kib: float, bits: int, tiles: str, stationary: str = "") -> float:
    """MiB of a network whose words, partial sums included, all have ``bits`` bits."""
    memory = Memory(int(kib * KIB), Words(bits, bits, bits, bits))
    schedules = [s for s in SCHEDULES if s.stationary.startswith(stationary)]
    return (
        sum(plan(layer, memory, schedules=schedules, tiles=tiles).bits for layer in network(batch))
        / MIB
    )


# Dense best single-layer totals: one tile per operand in a shared buffer, 16 bit or 8 bit.
DENSE = [
    (3, 16, 66.5, 437.72),
    (3, 16, 108, 337.25),
    (3, 16, 128, 323.7),
    (3, 16, 173.5, 285.1),
    (3, 16, 181.5, 284.86),
    (3, 16, 256, 255.36),
    (3, 16, 512, 209.73),
    (1, 8, 64, 57.61),
    (1, 8, 108, 47.51),
    (1, 8, 192, 43.06),
    (1, 8, 256, 40.08),
    (1, 8, 512, 37.14),
]


@pytest.mark.parametrize(("batch", "bits", "kib", "published"), DENSE)
def test_one_tile_per_operand_equals_the_dense_totals(batch, bits, kib, published):
    tied = total(vgg16, batch, kib, bits, "tied")
    assert tied <= published + 0.006
    assert tied == pytest.approx(published, rel=2e-3)


@pytest.mark.parametrize(("batch", "bits", "kib", "published"), DENSE[1::3])
def test_residency_of_its_own_per_operand_moves_less(batch, bits, kib, published):
    assert total(vgg16, batch, kib, bits, "free") < 0.995 * published


def test_vgg16_moves_less_than_hpca20_at_its_size():
    # Chen, Han, Wang, HPCA 2020: 299.6 MB; here 291.3 MB.
    megabytes = total(vgg16, 3, 173.5, 16, "free") * 2**20 / 1e6
    assert megabytes <= 299.6
    assert megabytes == pytest.approx(291.3, abs=0.1)


@pytest.mark.parametrize(
    ("batch", "bits", "kib", "published"),
    [
        (3, 16, 108, 263.35),
        (3, 16, 173.5, 222.13),
        (3, 16, 181.5, 218.96),
        (3, 16, 256, 196.69),
        (3, 16, 512, 167.91),
        (1, 8, 108, 38.36),
        (1, 8, 192, 35.85),
    ],
)
def test_lower_bounds_are_the_published_ones(batch, bits, kib, published):
    memory = Memory(int(kib * KIB), Words(bits, bits, bits, bits))
    bound = sum(lower_bound(layer, memory) for layer in vgg16(batch)) / MIB
    assert bound == pytest.approx(published, abs=0.006)


@pytest.mark.parametrize("stationary", ["output", "weight", "input"])
def test_fixed_schedules_cost_more(stationary):
    # PAPERS.md has 341.5, 458.9 and 421.7 MiB, from a coarser choice of tiles: ours are the best
    # tiles of either order that keeps the operand waiting, so they may only be lower.
    published = {"output": 341.5, "weight": 458.9, "input": 421.7}[stationary]
    fixed = total(vgg16, 3, 108, 16, "tied", stationary)
    assert total(vgg16, 3, 108, 16, "free") < fixed <= published
    assert fixed > 0.95 * published


def test_dense_macs_per_access():
    # SmartShuttle, DATE 2018: 434.8 for VGG-16 b3 and 526.3 for AlexNet b4, not dense.
    kib = 181.5e3 / 1024
    words = total(vgg16, 3, kib, 16, "free") * MIB / 16
    assert 46.04e9 / words == pytest.approx(315, abs=2)
    words = total(alexnet, 4, kib, 16, "free") * MIB / 16
    assert 2.663e9 / words == pytest.approx(356, abs=2)


def test_dense_traffic_stays_below_eyeriss():
    # Eyeriss, VGG-16, N = 3: 321.1 MB with compressed maps in 181.5 kB of SRAM in all.
    assert total(vgg16, 3, 181.5e3 / 1024, 16, "free") * 2**20 / 1e6 < 321.1


def test_networks_have_their_published_sizes():
    def macs(layers):  # papers count padding as work
        return sum(x.positions * x.out_channels * x.depth * x.taps for x in layers)

    assert macs(vgg16(3)) / 1e9 == pytest.approx(46.04, abs=0.01)
    assert macs(alexnet(4)) / 1e9 == pytest.approx(2.663, abs=0.001)
    # MobileNet v1: 569 M multiply-adds with its classifier's 1.02 M; ResNet-50: 4.09 G with 2.05 M.
    assert macs(mobilenet()) + 1024 * 1000 == pytest.approx(568.7e6, rel=1e-3)
    assert macs(resnet50()) + 2048 * 1000 == pytest.approx(4.089e9, rel=1e-3)
    assert len(resnet50()) == 53
    assert sum(x.weight_elements for x in resnet50()) == 23_454_912


def test_the_unet_of_a_configuration_is_the_one_diffusers_builds():
    torch = pytest.importorskip("torch")
    from diffusers import UNet2DConditionModel
    from models import SD2_UNET

    with torch.device("meta"):
        model = UNet2DConditionModel.from_config(SD2_UNET)
    built = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    layers = unet()
    assert sum(x.weight_elements for x in layers if isinstance(x, Conv)) == built
    products = sum(
        x.macs if isinstance(x, Attention) else x.positions * x.out_channels * x.depth * x.taps
        for x in layers
    )
    assert products / 1e9 == pytest.approx(402, abs=1)


def test_a_whole_unet_is_planned_and_near_its_bound():
    memory = Memory(2048 * KIB, W4A8, double_buffered=True, granule=(64, 64), bus=128)
    plans = [plan(layer, memory) for layer in unet()]
    assert sum(p.bits for p in plans) < 1.02 * sum(p.bound for p in plans)
    assert sum(p.exact for p in plans) >= len(plans) - 1
