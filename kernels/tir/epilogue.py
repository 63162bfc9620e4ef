"""What follows a product while its sums are hot: bias, shift, activation, residual, store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.tirx.script import builder as T

from .convert import store
from .gemm import Place
from .isa import Isa
from .kernel import Call
from .memory import load, load_raw, splat, typed
from .micro import Micro
from .short import activation

Expr = Any
Buffer = Any


def finishing(call: Call) -> int:
    """Bytes an epilogue reads and writes for a pixel of a call's result."""
    residual = call.args.get("residual")
    return call.out.shape[-1] * call.out.dtype.itemsize * (1 if residual is None else 2)


@dataclass(frozen=True)
class IntegerSums:
    """int32 sums of quantised operands on their way back.

    Attributes:
        columns: flat fp32 buffer of the columns' scales, in panel order.
        rows: flat fp32 buffer of A's scales, one a pixel, or with ``pitch`` one an image.
        correction: flat int32 buffer, added to the sums of a column, or None.
        pitch: elements from one image's corrections to the next; 0 where all have the same.
    """

    columns: Buffer
    rows: Buffer
    correction: Buffer | None
    pitch: int = 0

    def scale(self, place: Place, pixel: Expr) -> Expr:
        """A's scale at a pixel."""
        return T.bind(self.rows[place.image if self.pitch else pixel])

    def value(
        self, sums: Buffer, at: Expr, place: Place, column: Expr, scale: Expr, lanes: int
    ) -> Expr:
        """fp32 lanes of the sums from an element on; ``column`` is the first one's."""
        total = load_raw(sums, [at], lanes)
        if self.correction is not None:
            where = place.image * self.pitch + column if self.pitch else column
            total = total + load_raw(self.correction, [where], lanes)
        factor = T.bind(load(self.columns, [column], lanes) * splat(scale, lanes))
        return T.Cast(typed("float32", lanes), total) * factor


@dataclass(frozen=True)
class Epilogue:
    """Stores finished sums as ``[pixel][columns]``.

    Attributes:
        isa: the instruction path.
        micro: whose sums these are.
        columns: columns of the result.
        out: flat buffer of the result.
        bias: flat fp32 buffer in panel order, or None.
        shift: flat buffer ``[image][columns]``, or None.
        activation: name of an activation, or ``"geglu"``.
        residual: flat buffer of the result's shape, or None.
        integer: how int32 sums become fp32, or None where they are.
        origin: the pixel that lies first in ``out``; there is no residual where it is not 0.
    """

    isa: Isa
    micro: Micro
    columns: int
    out: Buffer
    bias: Buffer | None = None
    shift: Buffer | None = None
    activation: str = "none"
    residual: Buffer | None = None
    integer: IntegerSums | None = None
    origin: Expr = 0

    @property
    def _width(self) -> int:
        return self.micro.columns // 2 if self.activation == "geglu" else self.micro.columns

    def __call__(self, place: Place, panel: Expr, sums: Buffer, at: Expr) -> None:
        """Emit the stores of one group; see :meth:`.gemm.Product.emit`."""
        whole, rest = divmod(self.columns, self._width)
        if not rest:
            self._rows(place, panel, sums, at, self._width)
        elif not whole:
            self._rows(place, panel, sums, at, rest)
        else:
            with T.If(panel < whole):
                with T.Then():
                    self._rows(place, panel, sums, at, self._width)
                with T.Else():
                    self._rows(place, panel, sums, at, rest)

    def _rows(self, place: Place, panel: Expr, sums: Buffer, at: Expr, width: int) -> None:
        with T.serial(place.first, place.stop) as i:
            pixel, counts = place.pixel(i)
            row = T.bind(at + i * self.micro.columns)
            if counts is None:
                self._columns(place, T.bind(pixel), panel, sums, row, width)
            else:
                with T.If(counts), T.Then():
                    self._columns(place, T.bind(pixel), panel, sums, row, width)

    def _columns(
        self, place: Place, pixel: Expr, panel: Expr, sums: Buffer, row: Expr, width: int
    ) -> None:
        lanes = self.isa.lanes
        vectors, rest = divmod(width, lanes)
        emit = self._emitter(place, pixel, panel, sums, row)
        for v in range(vectors):
            emit(v * lanes, lanes)
        if rest:
            with T.serial(rest) as i:
                emit(vectors * lanes + i, 1)

    def _emitter(
        self, place: Place, pixel: Expr, panel: Expr, sums: Buffer, row: Expr
    ) -> Callable[[Expr, int], None]:
        scale = self.integer.scale(place, pixel) if self.integer else None

        def value(column: Expr, lanes: int) -> Expr:
            if self.integer:
                where = panel * self.micro.columns + column
                x = self.integer.value(sums, row + column, place, where, scale, lanes)
            else:
                x = load(sums, [row + column], lanes)
            if self.bias is not None:
                x = x + load(self.bias, [panel * self.micro.columns + column], lanes)
            return x

        def emit(column: Expr, lanes: int) -> None:
            x = value(column, lanes)
            n = panel * self._width + column
            if self.shift is not None:
                x = x + load(self.shift, [place.image * self.columns + n], lanes)
            if self.activation == "geglu":
                gate = T.bind(value(self._width + column, lanes))
                x = x * activation("gelu", self.out.dtype)(gate, lanes)
            else:
                x = activation(self.activation, self.out.dtype)(x, lanes)
            where = (pixel - self.origin) * self.columns + n
            if self.residual is not None:
                x = x + load(self.residual, [where], lanes)
            store(self.isa, self.out, where, T.bind(x), lanes)

        return emit
