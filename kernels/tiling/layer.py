"""The layers a planner knows, as sizes alone: convolution, matmul and attention."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

from ..errors import LayerError


@dataclass(frozen=True)
class Axis:
    """One spatial axis of a convolution: output positions and the input positions they touch.

    Attributes:
        size: input positions, padding not counted.
        kernel: taps.
        stride: input positions between neighbouring outputs.
        padding: zeros before and after; never fetched.
        dilation: input positions between neighbouring taps.
    """

    size: int
    kernel: int = 1
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    dilation: int = 1

    @property
    def span(self) -> int:
        """Input positions one output reaches over."""
        return (self.kernel - 1) * self.dilation + 1

    @property
    def outputs(self) -> int:
        """Output positions."""
        return (self.size + sum(self.padding) - self.span) // self.stride + 1

    @property
    def gaps(self) -> bool:
        """Whether a stride longer than the kernel leaves input positions that nobody needs."""
        return self.stride > self.span

    def touched(self, start: int, count: int) -> int:
        """Input positions that outputs ``start … start + count - 1`` need fetched.

        A dilated kernel's rows are fetched with the rows between them; rows between the kernels of
        a longer stride are not.
        """
        if self.gaps:
            return sum(self._clipped(o, o) for o in range(start, start + count))
        return self._clipped(start, start + count - 1)

    def _clipped(self, first: int, last: int) -> int:
        low = max(0, first * self.stride - self.padding[0])
        high = min(self.size, last * self.stride - self.padding[0] + self.span)
        return max(0, high - low)

    @cached_property
    def distinct(self) -> int:
        """Input positions needed at all."""
        return self.touched(0, self.outputs)

    @cached_property
    def macs(self) -> int:
        """Taps that fall on real input, over all outputs."""
        return sum(
            0 <= o * self.stride - self.padding[0] + k * self.dilation < self.size
            for o in range(self.outputs)
            for k in range(self.kernel)
        )

    def tiles(self, tile: int) -> list[tuple[int, int]]:
        """``(first output, outputs)`` of every tile, the last one the rest."""
        return [(o, min(tile, self.outputs - o)) for o in range(0, self.outputs, tile)]


@lru_cache(maxsize=65536)
def halo(axis: Axis, tile: int) -> tuple[int, int, int]:
    """``(tiles, most input positions of a tile, input positions of all tiles)``."""
    counts = [axis.touched(*t) for t in axis.tiles(tile)]
    return len(counts), max(counts), sum(counts)


@dataclass(frozen=True)
class Conv:
    """A convolution; a matmul is one with one tap, see :func:`matmul`.

    Attributes:
        name: for people.
        batch: images.
        in_channels: over all groups.
        out_channels: over all groups.
        rows: the vertical axis.
        columns: the horizontal axis.
        groups: as in torch; ``in_channels`` for a depthwise convolution.
        extra_reads: further elements read from far memory once, at the input's word: a residual.
        kind: ``conv`` or ``matmul``, for the lower bound.
        gated: pairs of output channels become one element before they leave, as in GEGLU.

    Raises:
        LayerError: sizes that are zero, negative or contradictory.
    """

    name: str
    batch: int
    in_channels: int
    out_channels: int
    rows: Axis
    columns: Axis
    groups: int = 1
    extra_reads: int = 0
    kind: str = "conv"
    gated: bool = False

    def __post_init__(self) -> None:
        for what in ("batch", "in_channels", "out_channels", "groups"):
            if getattr(self, what) < 1:
                raise LayerError(f"{self.name}: {what} is {getattr(self, what)}; it must be ≥ 1")
        if self.gated and self.width % 2:
            raise LayerError(f"{self.name}: {self.width} output channels cannot gate each other")
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise LayerError(
                f"{self.name}: {self.in_channels} and {self.out_channels} channels do not divide"
                f" into {self.groups} groups"
            )
        for what, axis in (("rows", self.rows), ("columns", self.columns)):
            if min(axis.size, axis.kernel, axis.stride, axis.dilation) < 1 or min(axis.padding) < 0:
                raise LayerError(f"{self.name}: {what} have a size below 1 or negative padding")
            if axis.outputs < 1:
                raise LayerError(
                    f"{self.name}: a kernel of {axis.span} {what} does not fit into"
                    f" {axis.size} with padding {axis.padding}"
                )

    @property
    def depth(self) -> int:
        """Input channels of one group."""
        return self.in_channels // self.groups

    @property
    def width(self) -> int:
        """Output channels of one group."""
        return self.out_channels // self.groups

    @property
    def taps(self) -> int:
        """Positions of the kernel."""
        return self.rows.kernel * self.columns.kernel

    @property
    def positions(self) -> int:
        """Output positions: images × rows × columns."""
        return self.batch * self.rows.outputs * self.columns.outputs

    @property
    def input_elements(self) -> int:
        """Input elements needed at all."""
        return self.batch * self.rows.distinct * self.columns.distinct * self.in_channels

    @property
    def weight_elements(self) -> int:
        """Weights."""
        return self.out_channels * self.depth * self.taps

    @property
    def output_elements(self) -> int:
        """Outputs."""
        return self.positions * self.out_channels // (2 if self.gated else 1)

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates on real input, padding left out."""
        return self.batch * self.rows.macs * self.columns.macs * self.out_channels * self.depth


def conv(
    name: str,
    channels: tuple[int, int],
    size: tuple[int, int],
    kernel: int | tuple[int, int] = 3,
    *,
    batch: int = 1,
    stride: int = 1,
    padding: int | tuple[int, int, int, int] | None = None,
    dilation: int = 1,
    groups: int = 1,
    extra_reads: int = 0,
) -> Conv:
    """A convolution in the usual terms.

    Args:
        name: for people.
        channels: in, out.
        size: input rows, columns.
        kernel: taps, one number for both axes or rows, columns.
        batch: images.
        stride: of both axes.
        padding: of all sides, or top, bottom, left, right; None keeps the size of an odd kernel.
        dilation: of both axes.
        groups: as in torch.
        extra_reads: see :class:`Conv`.
    """
    kernels = (kernel, kernel) if isinstance(kernel, int) else kernel
    if padding is None:
        top, left = kernels[0] // 2, kernels[1] // 2
        sides = (top, top, left, left)
    else:
        sides = (padding,) * 4 if isinstance(padding, int) else padding
    return Conv(
        name,
        batch,
        *channels,
        Axis(size[0], kernels[0], stride, sides[:2], dilation),
        Axis(size[1], kernels[1], stride, sides[2:], dilation),
        groups,
        extra_reads,
    )


def matmul(
    name: str,
    m: int,
    n: int,
    k: int,
    *,
    batch: int = 1,
    extra_reads: int = 0,
    gated: bool = False,
) -> Conv:
    """``(m, k) × (k, n)``, for every one of ``batch`` pairs of matrices."""
    rows, one = Axis(m), Axis(1)
    return Conv(name, 1, k * batch, n * batch, rows, one, batch, extra_reads, "matmul", gated)


@dataclass(frozen=True)
class Attention:
    """Scaled dot-product attention.

    Attributes:
        name: for people.
        heads: heads × batch.
        queries: rows of q.
        keys: rows of k and v.
        head_dim: columns of q and k.
        value_dim: columns of v; 0 means as many as ``head_dim``.
    """

    name: str
    heads: int
    queries: int
    keys: int
    head_dim: int
    value_dim: int = 0

    def __post_init__(self) -> None:
        if min(self.heads, self.queries, self.keys, self.head_dim) < 1 or self.value_dim < 0:
            raise LayerError(f"{self.name}: every size of an attention must be ≥ 1")
        if not self.value_dim:
            object.__setattr__(self, "value_dim", self.head_dim)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of both products."""
        return self.heads * self.queries * self.keys * (self.head_dim + self.value_dim)


Layer = Conv | Attention
