"""The launches of one product: the choice of tiles, splits of ``k`` and ways to decode."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from ..tiling.layer import Axis, Conv, matmul
from ..tiling.memory import Words
from .device import product as device
from .gpu import Gpu
from .kernel import Call, Kernel, Launch, Operand, Slot, TensorSpec, Unsupported
from .maps import gathered
from .tiles import LAUNCH, Tile, roof, tiles, traffic
from .traffic import Problem
from .weights import Order, Weights, column, column_sums, pack

FLOATS = (torch.float32, torch.float16, torch.bfloat16)

#: Rows and columns of a block of the launch that adds up splits.
FINISHED = 16, 64


@dataclass(frozen=True)
class Map:
    """How a convolution reads its left operand; sizes are those after upsampling.

    With ``border`` all that taps reach is stored, and ``top`` and ``left`` count what is left.
    """

    height: int
    width: int
    out_height: int
    out_width: int
    taps_wide: int
    stride: tuple[int, int]
    dilation: tuple[int, int]
    top: int
    left: int
    upsample: bool
    border: bool = False


@dataclass(frozen=True)
class Left:
    """A product's left operand and what makes it.

    Attributes:
        slots: one or two tensors, rows or maps.
        channels: of each.
        dtype: theirs.
        rows: of the product.
        map: how they are read as rows; None if they are rows.
        norm: applied as they are loaded: ``""``, ``"rows"`` or ``"map"``, from slots
            ``mean``, ``deviation``, ``gain`` and ``offset``; or ``"codes"``, rows quantised by
            their largest magnitudes, from slot ``read_peaks``.
        pre: activation applied as they are loaded.
        launches: what runs before.
        operands: what those launches and the loads need, by slot.
        scratch: workspace, by slot.
        measured: operands whose moments the launches gather.
        scaled: an operand whose rows' largest magnitudes they find.
        passed: bytes that the launches move, but for one reading of operands, and that the
            product reads of what they wrote.
        seconds: what the launches are expected to take.
        route: a word for people.
    """

    slots: tuple[str, ...]
    channels: tuple[int, ...]
    dtype: torch.dtype
    rows: int
    map: Map | None = None
    norm: str = ""
    pre: str = "none"
    launches: tuple[Launch, ...] = ()
    operands: dict[str, Operand] = field(default_factory=dict)
    scratch: dict[str, TensorSpec] = field(default_factory=dict)
    measured: tuple[str, ...] = ()
    scaled: str = ""
    passed: int = 0
    seconds: float = 0.0
    route: str = "as it is"


def check(call: Call, x: TensorSpec) -> None:
    """Refuse what no product here computes.

    Raises:
        Unsupported: dtypes other than fp32, fp16, bf16; mixed; empty tensors.
    """
    weight: TensorSpec = call["weight"].spec
    coded = call["channel_scale"] is not None
    if x.dtype not in FLOATS or (not coded and weight.dtype != x.dtype):
        raise Unsupported(f"a product of {x.dtype} by {weight.dtype}")
    if 0 in (*x.shape, *weight.shape, *call.out.shape):
        raise Unsupported("a tensor without elements")


def integer(call: Call) -> bool:
    """Whether a call quantises its activations and adds up integers."""
    return call["channel_scale"] is not None and not call["weight_only"]


def pass_seconds(nbytes: int, gpu: Gpu, launches: int = 1) -> float:
    """What a pass over that many bytes is expected to take."""
    rate = gpu.l2_rate / 2 if nbytes < gpu.l2 // 2 else gpu.dram_rate
    return launches * LAUNCH + nbytes / rate


def _longest(bits: int, gpu: Gpu) -> int:
    """The longest block of ``k``: a group of codes, or half, where decoding takes registers."""
    if bits != 4:
        return 128
    return 64 if gpu.permutes else 32


def products(call: Call, name: str, gpu: Gpu, left: Left, order: Order) -> Iterator[Kernel]:
    """Ways to multiply ``left`` by a call's weights and finish its result.

    Args:
        call: a linear's or a convolution's.
        name: the kernel's.
        gpu: what to generate for.
        left: the left operand, prepared.
        order: how the weights lie.

    Raises:
        Unsupported: from :func:`~.weights.pack`.
    """
    weights = pack(call, order)
    columns = call["weight"].spec.shape[0]
    operands = left.operands | weights.operands
    if call["bias"] is not None:
        operands["bias"] = column(call["bias"], order)
    if "row_zero" in left.scratch:
        operands["column_sum"] = column_sums(call, order)
    for extra in ("shift", "residual"):
        if call.args.get(extra) is not None:
            operands[extra] = Operand((call[extra],))
    reads = sum(operands[n].spec.nbytes for n in ("residual", "shift") if n in operands)
    words = _words(left, weights.bits, call.out.dtype)
    problem = Problem(
        _layer(left, columns, order, reads * 8 // words.input),
        words,
        steps=tuple(order.taps * depth for depth in order.depths),
        a_bytes=1 if left.norm == "codes" else left.dtype.itemsize,
        block_k=math.gcd(_longest(weights.bits, gpu), *order.depths),
        work={"": 0, "rows": 4, "map": 3, "codes": 6}[left.norm] + (9 if left.pre != "none" else 0),
        gathers=left.map is not None,
        loaded_bytes=left.dtype.itemsize,
    )
    # The affine of a map's norm is one for all rows of a block, which must lie in one image.
    pixels = left.map.out_height * left.map.out_width if left.map else 1
    builder = _Builder(call, name, gpu, left, order, weights, operands, pixels)
    for tile in tiles(problem, gpu):
        if left.norm == "map" and pixels % tile.m:
            continue
        yield builder.kernel(problem, tile, expand=False)
    if weights.bits == 4:
        decoded = dataclasses.replace(
            problem,
            words=_words(left, 8, call.out.dtype),
            block_k=math.gcd(128, *order.depths),
        )
        for tile in tiles(decoded, gpu, keep=4):
            yield builder.kernel(decoded, tile, expand=True)


def _words(left: Left, bits: int, out: torch.dtype) -> Words:
    """Bits in memory. Of a map that is read twice as large each element stands for four."""
    element = 8 * left.dtype.itemsize
    return Words(
        input=element // 4 if left.map and left.map.upsample else element,
        weight=bits,
        output=8 * out.itemsize,
        psum=1,
        scale=8 if bits == 4 else 0,
    )


def _layer(left: Left, columns: int, order: Order, extra_reads: int) -> Conv:
    """The product as a layer of the planner's."""
    if left.map is None:
        layer = matmul("", left.rows, columns, order.depth, extra_reads=extra_reads)
        return dataclasses.replace(layer, gated=order.gated)
    read = left.map

    def axis(size: int, out: int, taps: int, before: int, which: int) -> Axis:
        stride, dilation = read.stride[which], read.dilation[which]
        touched = (out - 1) * stride + (taps - 1) * dilation + 1
        if read.border:
            return Axis(touched, taps, stride, dilation=dilation)
        after = touched - size - before
        return Axis(size, taps, stride, (before, max(0, after)), dilation)

    rows = axis(read.height, read.out_height, order.taps // read.taps_wide, read.top, 0)
    columns_of = axis(read.width, read.out_width, read.taps_wide, read.left, 1)
    images = left.rows // (read.out_height * read.out_width)
    return Conv("", images, sum(order.depths), columns, rows, columns_of, 1, extra_reads)


@dataclass(frozen=True)
class _Builder:
    """Makes kernels of one call that differ in their tiles."""

    call: Call
    name: str
    gpu: Gpu
    left: Left
    order: Order
    weights: Weights
    operands: dict[str, Operand]
    pixels: int

    def slot(self, name: str, scratch: dict[str, TensorSpec]) -> Slot | None:
        """A tensor, if there is one of that name."""
        return Slot(name) if name in self.operands or name in scratch else None

    def kernel(self, problem: Problem, tile: Tile, expand: bool) -> Kernel:
        """The kernel under a tile; ``expand`` decodes all weights before the product."""
        call, left, order, operands = self.call, self.left, self.order, self.operands
        scratch = dict(left.scratch)
        launches = list(left.launches)
        found = roof(problem, tile, self.gpu)
        expected = left.seconds + found.seconds
        if expand:
            scratch["expanded"] = TensorSpec((problem.n, order.depth), torch.int8)
            launches.append(self._expand(problem))
            expected += pass_seconds(problem.n * order.depth * 3 // 2, self.gpu)
        passed = left.passed
        if tile.split > 1:
            dtype = torch.int32 if integer(call) else torch.float32
            scratch["partial"] = TensorSpec((tile.split, problem.m, problem.n), dtype)
            passed += 2 * scratch["partial"].nbytes
        bm, bn = FINISHED if tile.split > 1 else (tile.m, tile.n)
        extras = gathered(call, bm, bn // 2 if order.gated else bn)
        written = sum(extra.spec.nbytes for extra in extras.values())
        expected += written / self.gpu.dram_rate
        after = {
            **{n: self.slot(n, scratch) for n in ("channel_scale", "bias", "shift", "residual")},
            **{n: self.slot(n, scratch) for n in ("row_scale", "row_zero", "column_sum")},
            "read_peaks": self.slot("read_peaks", scratch),
            **{name: Slot(name) if name in extras else None for name in ("moments", "peaks")},
            "out": Slot("out"),
            "M": problem.m,
            "N": problem.n,
            "pixels": self.pixels,
            "read_blocks": operands["read_peaks"].spec.shape[1] if "read_peaks" in operands else 0,
            "GATED": order.gated,
            "ACTIVATION": "none" if order.gated else call.args.get("activation", "none"),
            "SPLIT": tile.split,
        }
        alone = after | {"moments": None, "peaks": None} if tile.split > 1 else after
        launches.append(self._product(problem, tile, scratch, alone, expand))
        if tile.split > 1:
            launches.append(
                Launch(
                    device.finish,
                    (math.ceil(problem.m / bm), math.ceil(problem.n / bn), 1),
                    after | {"partial": Slot("partial"), "BM": bm, "BN": bn},
                )
            )
        moved = traffic(problem, tile, self.gpu)
        return Kernel(
            self.name,
            operands,
            call.out,
            tuple(launches),
            scratch,
            extras,
            left.measured,
            left.scaled,
            passed,
            flops=2 * problem.m * problem.n * (call["weight"].spec.numel // problem.n),
            seconds=expected,
            notes={
                "tile": f"{tile.m}x{tile.n}x{tile.k}",
                "warps": tile.warps,
                "stages": tile.stages,
                "split": tile.split,
                "route": left.route,
                "weights": f"{self.weights.bits} bits" + (" expanded" if expand else ""),
                "order": f"{tile.group} block rows",
                "l2_bytes": moved.l2,
                "dram_bytes": moved.dram + written,
                "limit": found.limit,
                "expected_us": round(expected * 1e6, 1),
            },
        )

    def _expand(self, problem: Problem) -> Launch:
        return Launch(
            device.expand,
            (math.ceil(problem.n / 64), self.order.depth // 64, 1),
            {
                "codes": Slot("w"),
                "table": Slot("table"),
                "group_scale": Slot("group_scale"),
                "out": Slot("expanded"),
                "N": problem.n,
                "depth": self.order.depth,
                "PERMUTE": self.gpu.permutes,
                "BN": 64,
            },
        )

    def _product(
        self,
        problem: Problem,
        tile: Tile,
        scratch: dict[str, TensorSpec],
        after: dict[str, Any],
        expand: bool,
    ) -> Launch:
        left, order = self.left, self.order
        geometry = left.map or Map(1, 1, 1, 1, 1, (1, 1), (1, 1), 0, 0, False)
        two = len(left.slots) > 1
        chunks = [depth // tile.k for depth in order.depths]
        steps = [order.taps * n for n in chunks]
        coded = self.weights.bits == 4 and not expand
        precision = "tf32"
        if left.dtype is torch.float32:
            precision = "tf32x3" if self.gpu.kind == "cuda" else "ieee"
        arguments = {
            "x0": Slot(left.slots[0]),
            "x1": Slot(left.slots[1]) if two else None,
            "w": Slot("expanded" if expand else "w"),
            "table": Slot("table") if coded else None,
            "group_scale": Slot("group_scale") if coded else None,
            **{n: self.slot(n, scratch) for n in ("mean", "deviation", "gain", "offset")},
            **after,
            "partial": Slot("partial") if tile.split > 1 else None,
            "depth": order.depth,
            "depth1": steps[0] * tile.k,
            "channels0": left.channels[0],
            "channels1": left.channels[1] if two else 0,
            "chunks0": chunks[0],
            "chunks1": chunks[1] if two else 0,
            "steps0": steps[0],
            "steps1": steps[1] if two else 0,
            "per_split": math.ceil(sum(steps) / tile.split),
            "out_width": geometry.out_width,
            "height": geometry.height,
            "width": geometry.width,
            "top": geometry.top,
            "left": geometry.left,
            "group": tile.group,
            "MAP": left.map is not None,
            "KW": geometry.taps_wide,
            "STRIDE_H": geometry.stride[0],
            "STRIDE_W": geometry.stride[1],
            "DILATION_H": geometry.dilation[0],
            "DILATION_W": geometry.dilation[1],
            "UPSAMPLE": geometry.upsample,
            "BORDER": geometry.border,
            "NORM": left.norm,
            "PRE": left.pre,
            "CODES": coded,
            "PERMUTE": self.gpu.permutes,
            "EVEN": left.channels == order.depths,
            "PRECISION": precision,
            "INTEGER": integer(self.call),
            "BM": tile.m,
            "BN": tile.n,
            "BK": tile.k,
        }
        grid = (tile.blocks(problem), tile.split, 1)
        return Launch(device.product, grid, arguments, tile.warps, tile.stages)
