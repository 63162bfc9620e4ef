"""Choosing codes and scales: the smallest squared error, found by search over whole tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext

import torch
from torch.nn import functional as F

from ..integer import GROUP
from .coded import Coded
from .compensate import inverse_factor, rounding
from .curves import largest_of
from .encoding import Encoding, NonFiniteWeightError
from .fit import fit_table
from .pruning import prune
from .scales import choose_scales, refit
from .smoothing import divided, multiplied
from .tables import Table

#: Elements encoded at a time: fewer would pay for calls, more for memory.
BLOCK = 1 << 19

#: Elements up to which one thread encodes a weight.
_ALONE = 4 * BLOCK

#: Clipping points tried for int8, as parts of a channel's largest weight.
_CLIPS = (1.0, 0.95, 0.9, 0.83, 0.75, 0.65)

#: Elements that stand for a layer when its table is chosen.
_SAMPLE = 1 << 16


def encode(
    weight: torch.Tensor,
    encoding: Encoding,
    importance: torch.Tensor | None = None,
    gram: torch.Tensor | None = None,
    pruned: bool = False,
    factors: torch.Tensor | None = None,
) -> Coded:
    """Encode a weight.

    Args:
        weight: ``(N, K)`` or ``(O, I, KH, KW)``, floating and finite.
        encoding: any that has codes (not ``keep``).
        importance: of each input channel's error, ``(K,)`` or ``(I,)``, such as the mean square
            of its activations; None weighs all alike.
        gram: second moments of the input channels within each group of 64, fp32
            ``(ceil(I / 64), 64, 64)``. Codes of a table are then chosen one channel after the
            other, and the error of each is made good by those that follow, as far as their
            activations go together (Frantar et al., GPTQ, ICLR 2023). The diagonal is the
            importance where none is given.
        pruned: the weight is pruned as the encoding says, part by part: what is zero stays so.
        factors: what input channels are multiplied by once pruned, and what they read is divided
            by, ``(K,)`` or ``(I,)``, see :mod:`.smoothing`. ``importance`` and ``gram`` are those
            of before.

    Returns:
        the codes in the weight's own shape; see :class:`Coded`. They are chosen on the CPU, so
        that they are the same everywhere, and lie where the weight does.

    Raises:
        NonFiniteWeightError: the weight holds NaN or infinity.
    """
    device = weight.device
    importance = None if importance is None else importance.cpu()
    gram = None if gram is None else gram.cpu()
    with torch.no_grad(), _one_thread() if weight.numel() <= _ALONE else nullcontext():
        weight = weight.cpu()
        if encoding.pruning and not pruned:
            weight = prune(weight, encoding.pruning)
        if factors is not None:
            factors = factors.cpu()
            weight = multiplied(weight, factors)
            importance = None if importance is None else importance / factors.square()
            gram = None if gram is None else divided(gram, factors)
        coded = _encode(weight, encoding, importance, gram)
    table = None if coded.table is None else coded.table.to(device)
    scale = None if coded.group_scale is None else coded.group_scale.to(device)
    return Coded(coded.codes.to(device), table, scale, coded.channel_scale.to(device))


def _encode(
    weight: torch.Tensor,
    encoding: Encoding,
    importance: torch.Tensor | None,
    gram: torch.Tensor | None,
) -> Coded:
    if gram is not None and importance is None:
        importance = gram.diagonal(dim1=1, dim2=2).reshape(-1)[: weight.shape[1]].clone()
    if encoding.kind == "int8":
        return _encode_values(weight, importance)
    taps = weight.reshape(*weight.shape[:2], -1)
    if importance is None and taps.shape[1] % GROUP:
        importance = torch.ones(taps.shape[1])  # and padding has none
    if importance is not None:
        importance = _grouped(_damped(importance.float()).view(1, -1, 1))
    inverse = None if gram is None or encoding.pruning else inverse_factor(gram)
    zero, free = encoding.pruning is not None, encoding.kind == "shared"
    with _one_thread():
        table = fit_table(_sample(taps), encoding.entries, importance, zero, free)
    out, channels, runs = taps.shape
    codes = torch.empty(out, channels, runs, dtype=torch.uint8)
    group_scale = torch.empty(out, -(-channels // GROUP), runs, dtype=torch.int8)
    channel_scale = torch.empty(out)

    def block(rows: slice) -> None:
        x = _grouped(taps[rows])
        code, scale, channel = _encode_block(x, table, importance, inverse)
        codes[rows] = code.permute(2, 1, 0, 3).reshape(code.shape[2], -1, runs)[:, :channels]
        group_scale[rows], channel_scale[rows] = scale, channel

    _side_by_side(block, _row_blocks(taps))
    shape = (out, group_scale.shape[1], *weight.shape[2:])
    return Coded(codes.view(weight.shape), table.values, group_scale.view(shape), channel_scale)


def _encode_block(
    x: torch.Tensor,
    table: Table,
    importance: torch.Tensor | None,
    inverse: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, group scales and channel scales of a block ``(64, G, O, taps)``."""
    sizes = largest_of(x)
    size = sizes.amax(dim=(0, 2), keepdim=True)
    largest = _divisor(size)
    x.div_(largest)  # squares of very large and very small weights stay in range
    group_scale, channel_scale = choose_scales(x, table, importance, sizes / largest)
    if inverse is not None:
        codes = rounding(table)(x, group_scale * channel_scale, table, inverse)
    else:
        codes, values = table.nearest(x, group_scale * channel_scale)
        channel_scale = refit(x, values, group_scale, channel_scale, importance)
    # Zeros need no value of the table's that is zero, only a channel's scale that is next to it.
    tiny = torch.finfo(torch.float32).tiny
    channel_scale = torch.where(size > tiny, channel_scale * largest, tiny)
    return codes, group_scale.transpose(0, 1).to(torch.int8), channel_scale.flatten()


def _encode_values(weight: torch.Tensor, importance: torch.Tensor | None) -> Coded:
    """int8 per output channel."""
    out = len(weight)
    runs = weight[0, 0].numel()
    flat = weight.reshape(out, -1)
    each = None if importance is None else importance.float().repeat_interleave(runs)
    codes = torch.empty(flat.shape, dtype=torch.int8)
    channel_scale = torch.empty(out)
    for rows in _row_blocks(flat):
        x = flat[rows].float()
        largest = _divisor(x.abs().amax(dim=1, keepdim=True))
        best, scale = torch.full_like(largest, torch.inf), torch.empty_like(largest)
        unit = x / largest
        for clip in _CLIPS:
            q = (unit * (127 / clip)).round_().clamp_(-127, 127)
            error = q.mul_(clip / 127).sub_(unit).square_()
            error = (error if each is None else error.mul_(each)).sum(dim=1, keepdim=True)
            scale = torch.where(error < best, clip / 127, scale)
            best = torch.minimum(error, best)
        q = (unit / scale).round_().clamp_(-127, 127)
        codes[rows] = q.to(torch.int8)
        weighted = q if each is None else q * each
        norm = (weighted * q).sum(dim=1)
        fit = (weighted * unit).sum(dim=1) / norm
        fit = torch.where(norm > 0, fit, scale.flatten())
        channel_scale[rows] = fit * largest.flatten()
    return Coded(codes.view(weight.shape), None, None, channel_scale)


def _damped(importance: torch.Tensor) -> torch.Tensor:
    """Importance that no channel is quite without: activations seen are not all there will be."""
    mean = importance.mean()
    return importance + 0.01 * torch.where(mean > 0, mean, 1.0)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Many short operations: on a busy machine each would wait a time slice for its other half."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _side_by_side(work: Callable[[slice], None], blocks: Iterator[slice]) -> None:
    """Do blocks on as many threads as torch has, each alone: they need not wait for each other."""
    threads = torch.get_num_threads()

    def alone(rows: slice) -> None:
        torch.set_num_threads(1)  # this thread's alone
        with torch.no_grad():
            work(rows)

    if threads == 1:
        for rows in blocks:
            work(rows)
        return
    try:
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(alone, blocks):
                pass
    finally:
        torch.set_num_threads(threads)


def _row_blocks(x: torch.Tensor) -> Iterator[slice]:
    step = max(1, BLOCK // max(1, x[0].numel()))
    return (slice(i, min(i + step, len(x))) for i in range(0, len(x), step))


def _grouped(taps: torch.Tensor) -> torch.Tensor:
    """``(O, I, taps)`` as fp32 ``(64, ceil(I / 64), O, taps)``: scales broadcast along axis 0."""
    if taps.shape[1] % GROUP:
        taps = F.pad(taps, (0, 0, 0, -taps.shape[1] % GROUP))
    split = taps.unflatten(1, (-1, GROUP)).permute(2, 1, 0, 3)
    return torch.empty(split.shape).copy_(split)


def _divisor(x: torch.Tensor) -> torch.Tensor:
    """Sizes to divide by: those of nothing but zeros, or next to nothing, become one.

    Raises:
        NonFiniteWeightError: one of them is NaN or infinite.
    """
    if not torch.isfinite(x).all():
        raise NonFiniteWeightError(
            'a weight holds NaN or infinity and cannot be encoded: mend it, or use weights="keep"'
        )
    return torch.where(x > torch.finfo(torch.float32).tiny * 256, x, 1.0)


def _sample(taps: torch.Tensor) -> torch.Tensor:
    """Output channels spread over the layer, grouped, that stand for all of them."""
    count = max(1, min(len(taps), _SAMPLE // max(1, taps[0].numel())))
    rows = torch.linspace(0, len(taps) - 1, count).round().long()
    x = _grouped(taps[rows])
    return x / _divisor(x.abs().amax(dim=(0, 1, 3), keepdim=True))
