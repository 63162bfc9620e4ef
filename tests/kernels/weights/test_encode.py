"""Coded weights: what they hold, how near they come, what they take to store."""

from __future__ import annotations

import math

import pytest
import torch
from torch._subclasses import FakeTensorMode
from zoomc.kernels.integer import GROUP
from zoomc.kernels.weights import (
    Coded,
    Encoding,
    bits,
    decode,
    encode,
    encoder,
    pack,
    prune,
    unpack,
)
from zoomc.kernels.weights import encode as encode_function
from zoomc.kernels.weights.coded import pack_pruned, stored_bits
from zoomc.kernels.weights.encoding import EncodingError, NonFiniteWeightError
from zoomc.kernels.weights.op import DECODE, ENCODE, PRUNE, UNPACK
from zoomc.kernels.weights.pruning import PruningError

KINDS = ["int8", "int4", "shared", "shared:4", "shared:256"]
SHAPES = [(1, 1), (3, 64), (5, 65), (7, 200), (4, 3, 3, 3), (6, 70, 1, 1), (3, 130, 5, 7)]


def normal(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def error(weight: torch.Tensor, spelling: str, importance: torch.Tensor | None = None) -> float:
    coded = encode(weight, Encoding.parse(spelling), importance)
    return relative(decode(coded), weight)


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


def plain_max(weight: torch.Tensor, levels: int, group: int) -> torch.Tensor:
    """Rounding with the step that spans each group's largest weight, by the textbook."""
    flat = weight.flatten(1)
    groups = flat.view(len(flat), -1, group)
    step = groups.abs().amax(-1, keepdim=True) / (levels // 2 - 1)
    return (groups / step).round().mul(step).view(weight.shape)


@pytest.mark.parametrize("spelling", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_are_what_the_contract_says(spelling, shape):
    encoding = Encoding.parse(spelling)
    weight = normal(shape)
    coded = encode(weight, encoding)
    assert coded.codes.shape == shape and coded.codes.is_contiguous()
    assert coded.channel_scale.shape == shape[:1] and coded.channel_scale.dtype is torch.float32
    assert (coded.channel_scale > 0).all()
    if encoding.kind == "int8":
        assert coded.codes.dtype is torch.int8 and coded.codes.min() >= -127
        assert coded.table is None and coded.group_scale is None
    else:
        assert coded.codes.dtype is torch.uint8
        assert coded.table.shape == (encoding.entries,) and coded.table.dtype is torch.int8
        assert coded.group_scale.shape == (shape[0], math.ceil(shape[1] / GROUP), *shape[2:])
        assert coded.group_scale.dtype is torch.int8 and coded.group_scale.min() >= 1
        largest = coded.table.int().abs().max() * coded.group_scale.int().max()
        assert largest <= 127
    limit = {"int8": 0.012, "int4": 0.13, "shared": 0.12, "shared:4": 0.42, "shared:256": 0.03}
    if weight.numel() > 100:
        assert relative(decode(coded), weight) < limit[spelling]


def test_search_beats_plain_max():
    for weight in (normal((64, 512)), normal((64, 512)) ** 3):
        assert error(weight, "int8") < relative(plain_max(weight, 256, 512), weight)
        assert error(weight, "int4") < relative(plain_max(weight, 16, 64), weight)


@pytest.mark.parametrize("power", [0.0, 1.0, 1.7])
def test_shared_values_are_no_worse_than_uniform_ones(power):
    uniform = torch.rand((96, 640), generator=torch.Generator().manual_seed(1)) * 2 - 1
    weight = uniform if power == 0 else normal((96, 640)).abs().pow(power) * uniform.sign()
    assert error(weight, "shared") < error(weight, "int4") * 1.005
    assert error(weight, "shared:256") < error(weight, "shared") / 5
    if power == 1.7:
        assert error(weight, "shared") < error(weight, "int4") * 0.9


def test_groups_and_taps_of_different_sizes_keep_their_own_precision():
    sizes = torch.tensor([1.0, 0.5]).repeat_interleave(64).view(1, 128, 1, 1)
    taps = torch.tensor([[0.3, 1.0, 0.3]])
    weight = normal((32, 128, 1, 3)) * sizes * taps
    decoded = decode(encode(weight, Encoding.parse("int4")))
    for group in (slice(0, 64), slice(64, 128)):
        for tap in range(3):
            assert relative(decoded[:, group, :, tap], weight[:, group, :, tap]) < 0.14


@pytest.mark.parametrize("spelling", KINDS)
def test_corners(spelling):
    encoding = Encoding.parse(spelling)
    weight = normal((9, 192))
    weight[0] = 0
    weight[1, :64] = 0
    weight[2] = 3.5
    weight[3] = -3.5
    weight[4, 5] = 1e6
    weight[5] *= 1e37
    weight[6] *= 1e-30
    weight[7] = 1e-42
    weight[8] = torch.where(torch.arange(192) % 2 == 0, 2.0, -2.0)
    decoded = decode(encode(weight, encoding))
    assert torch.isfinite(decoded).all()
    if encoding.kind == "int8":
        assert (decoded[0] == 0).all() and (decoded[1, :64] == 0).all()
    assert decoded[0].abs().max() <= 1 and decoded[7].abs().max() <= 1
    for row in (2, 3, 8):
        assert relative(decoded[row], weight[row]) < (0.3 if encoding.entries == 4 else 0.08)
    assert relative(decoded[4], weight[4]) < 0.35
    for row in (5, 6):
        assert relative(decoded[row], weight[row]) < 0.5


def test_uniform_codes_keep_zeros():
    weight = normal((4, 128))
    weight[:, ::3] = 0
    weight[2] = 0
    for spelling in ("int8", "int4", "shared+50%", "shared:4+50%", "shared:256+50%"):
        decoded = decode(encode(weight, Encoding.parse(spelling)))
        assert (decoded[weight == 0] == 0).all(), spelling


@pytest.mark.parametrize("spelling", ["int8", "int4", "shared"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_without_a_number_are_refused(spelling, value):
    weight = normal((3, 70))
    weight[1, 69] = value
    with pytest.raises(NonFiniteWeightError, match='weights="keep"'):
        encode(weight, Encoding.parse(spelling))


@pytest.mark.parametrize("spelling", ["int8", "int4", "shared"])
def test_importance_moves_the_error_to_where_it_matters_less(spelling):
    weight = normal((64, 256)) ** 3
    importance = torch.where(torch.arange(256) % 8 == 0, 100.0, 1.0)

    def weighted(coded: Coded) -> float:
        return float(((decode(coded) - weight).square() * importance).sum())

    encoding = Encoding.parse(spelling)
    with_it, without = (weighted(encode(weight, encoding, i)) for i in (importance, None))
    assert with_it < 0.99 * without


def channels_that_go_together(shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations, and their second moments within groups of 64."""
    x = torch.nn.functional.silu(normal(shape, 1) + 0.5 * normal((shape[0], 1), 2))
    padded = torch.nn.functional.pad(x, (0, -shape[1] % GROUP)).unflatten(1, (-1, GROUP))
    return x, torch.einsum("ngi,ngj->gij", padded, padded) / len(x)


@pytest.mark.parametrize("spelling", ["int4", "shared", "shared:4"])
def test_errors_are_made_good_by_channels_that_go_together(spelling):
    x, gram = channels_that_go_together((500, 150))
    weight, encoding = normal((40, 150)), Encoding.parse(spelling)

    def lost(coded: Coded) -> float:
        return relative(x @ decode(coded).t(), x @ weight.t())

    plain = lost(encode(weight, encoding))
    assert lost(encode(weight, encoding, gram=gram)) < 0.92 * plain
    conv = weight.view(40, 150, 1, 1).repeat(1, 1, 3, 1)
    by_tap = decode(encode(conv, encoding, gram=gram))
    got, want = (torch.einsum("nc,ockl->nokl", x, w) for w in (by_tap, conv))
    assert relative(got, want) < 0.94 * plain


def test_codes_do_not_depend_on_how_many_threads_find_them(monkeypatch):
    monkeypatch.setattr(encoder, "_ALONE", 0)
    monkeypatch.setattr(encoder, "BLOCK", 1 << 12)
    weight = normal((90, 150))
    gram = channels_that_go_together((500, 150))[1]
    threads = torch.get_num_threads()
    try:
        found = []
        for n in (1, 3):
            torch.set_num_threads(n)
            found.append(encode(weight, Encoding("int4"), gram=gram))
            assert torch.get_num_threads() == n
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0].codes, found[1].codes)
    assert torch.equal(found[0].channel_scale, found[1].channel_scale)


def test_channels_that_never_fire_and_groups_without_any():
    weight = normal((8, 130))
    x = normal((300, 130)).relu()
    x[:, 3:70] = 0
    x[:, 128:] = 0
    padded = torch.nn.functional.pad(x, (0, 62)).unflatten(1, (3, 64))
    gram = torch.einsum("ngi,ngj->gij", padded, padded) / 300
    coded = encode(weight, Encoding("int4"), gram=gram)
    assert relative(x @ decode(coded).t(), x @ weight.t()) < 0.15
    alone = encode(weight, Encoding("int4"), gram=torch.eye(64).repeat(3, 1, 1))
    assert relative(decode(alone), weight) < 0.12
    assert torch.isfinite(
        decode(encode(weight, Encoding("int4"), gram=torch.zeros(3, 64, 64)))
    ).all()


@pytest.mark.parametrize("spelling", ["int8", "int4", "shared"])
def test_the_size_of_the_working_set_changes_nothing(spelling, monkeypatch):
    weight = normal((40, 96, 3, 3))
    whole = encode(weight, Encoding.parse(spelling))
    monkeypatch.setitem(encode_function.__globals__, "BLOCK", 2000)
    parts = encode(weight, Encoding.parse(spelling))
    assert torch.equal(parts.codes, whole.codes)
    torch.testing.assert_close(parts.channel_scale, whole.channel_scale)


def test_non_contiguous_and_half_precision_weights():
    weight = normal((128, 48)).t()
    assert torch.equal(
        encode(weight, Encoding("int4")).codes, encode(weight.contiguous(), Encoding("int4")).codes
    )
    half = weight.bfloat16()
    for spelling in KINDS:
        a, b = (encode(w, Encoding.parse(spelling)) for w in (half, half.float()))
        assert torch.equal(a.codes, b.codes) and torch.equal(a.channel_scale, b.channel_scale)


def test_bits_are_counted_exactly():
    # 2×100 codes, two rows of two group scales, two channel scales
    weight = normal((2, 100))
    for spelling, expected in {
        "int8": 200 * 8 + 64,
        "int4": 200 * 4 + 16 * 8 + 4 * 8 + 64,
        "shared": 200 * 4 + 16 * 8 + 4 * 8 + 64,
        "shared:4": 200 * 2 + 4 * 8 + 4 * 8 + 64,
        "shared:256": 200 * 8 + 256 * 8 + 4 * 8 + 64,
        "int4+2:4": 100 * 4 + 100 * 2 + 16 * 8 + 4 * 8 + 64,
        "int8+75%": 50 * 8 + 200 + 64,
        # one block of 32×64 of the two (both padded) is stored
        "int4+blocks50%": 32 * 64 * 4 + 2 + 16 * 8 + 4 * 8 + 64,
    }.items():
        encoding = Encoding.parse(spelling)
        assert bits(encode(weight, encoding), encoding) == expected, spelling
        assert stored_bits((2, 100), encoding) == expected, spelling
    assert stored_bits((2, 100), Encoding.parse("keep"), 16) == 3200
    assert stored_bits((2, 100), Encoding.parse("keep+50%"), 16) == 100 * 16 + 200
    conv = encode(normal((3, 65, 3, 3)), Encoding("int4"))
    assert bits(conv) == 3 * 65 * 9 * 4 + 16 * 8 + 3 * 2 * 9 * 8 + 3 * 32


@pytest.mark.parametrize("code_bits", [2, 4, 8])
@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 3, 3, 3), (4, 8)])
def test_packed_codes_come_back(code_bits, shape):
    codes = torch.randint(0, 2**code_bits, shape, dtype=torch.uint8)
    packed = pack(codes, code_bits)
    assert packed.numel() == math.ceil(codes.numel() * code_bits / 8)
    assert torch.equal(unpack(packed, code_bits, shape), codes)
    table = torch.zeros(2**code_bits, dtype=torch.int8)
    assert torch.equal(UNPACK(packed, table, list(shape)), codes)
    if code_bits == 4 and codes.numel() > 1:
        first = codes.flatten()
        assert packed[0] == first[0] + 16 * first[1]


@pytest.mark.parametrize("kind", ["int8", "int4", "shared:4"])
@pytest.mark.parametrize("shape", [(2, 100), (70, 130), (128, 200), (6, 70, 3, 3)])
@pytest.mark.parametrize("pattern", ["2:4", "30%", "blocks50%"])
def test_kept_codes_come_back(kind, shape, pattern):
    encoding = Encoding.parse(f"{kind}+{pattern}")
    weight = normal(shape)
    coded = encode(weight, encoding)
    packed, mask = pack_pruned(coded.codes, coded.table, encoding.code_bits, encoding.pruning)
    scales = bits(Coded(coded.codes[:, :0], *coded[1:]))
    assert 0 <= 8 * (len(packed) + len(mask)) - (bits(coded, encoding) - scales) < 16
    table = torch.empty(0, dtype=torch.int8) if coded.table is None else coded.table
    codes = UNPACK(packed, table, list(shape), mask, str(encoding))
    assert torch.equal(decode(coded._replace(codes=codes)), decode(coded))
    pruned = prune(weight, encoding.pruning)
    again = encode(pruned, encoding, pruned=True)
    assert all(torch.equal(a, b) for a, b in zip(again, coded, strict=True) if a is not None)


def test_codes_of_a_weight_that_is_not_pruned_are_refused():
    with pytest.raises(PruningError, match="not pruned by 50%: prune it first"):
        pack_pruned(torch.ones(4, 8, dtype=torch.int8), None, 8, Encoding.parse("int8+50%").pruning)


@pytest.mark.parametrize("spelling", [*KINDS, "int4+2:4"])
def test_operators_know_their_shapes(spelling):
    weight = normal((6, 70, 3, 3))
    coded = ENCODE(weight, spelling)
    assert torch.equal(coded[0], encode(weight, Encoding.parse(spelling)).codes)
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(weight)
        shapes = ENCODE(fake, spelling)
        packed = mode.from_tensor(torch.zeros(1, dtype=torch.uint8))
        decoded = DECODE(packed, *shapes[1:], list(weight.shape))
        assert PRUNE(fake, spelling).shape == weight.shape == decoded.shape
        assert UNPACK(packed, shapes[1], list(weight.shape)).dtype is shapes[0].dtype
    for real, known in zip(coded, shapes, strict=True):
        assert (real.shape, real.dtype) == (known.shape, known.dtype)
    codes, table, group_scale, channel_scale = coded
    code_bits = {4: 2, 16: 4}.get(table.numel(), 8)
    stored = pack(codes, code_bits), table, group_scale, channel_scale.view(torch.int32)
    decoded = DECODE(*stored, list(weight.shape))
    assert torch.equal(decoded, decode(encode(weight, Encoding.parse(spelling))))
    assert torch.equal(UNPACK(stored[0], table, list(weight.shape)), codes)
    assert relative(decoded, PRUNE(weight, spelling)) < 0.45


@pytest.mark.parametrize("spelling", ["keep", "int8", "shared:4", "int4+2:4", "keep+12.5%"])
def test_spellings_come_back(spelling):
    assert str(Encoding.parse(spelling)) == spelling
    assert Encoding.parse("int4+blocks30%").pruning.share == 0.3


@pytest.mark.parametrize(
    "spelling", ["int5", "int4:16", "shared:5", "int4+3:4", "int4+", "int4+100%", "", "INT4"]
)
def test_wrong_spellings_are_refused(spelling):
    with pytest.raises(EncodingError, match="known: keep, int8, int4 or shared"):
        Encoding.parse(spelling)
