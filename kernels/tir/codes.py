"""Weights that stay packed in memory as 2- or 4-bit codes, and their way back to int8 panels.

A panel's codes lie in the order of the int8 panel the micro-kernel reads. That panel is cut into
vectors; one vector of code bytes holds several of them, the first in the lowest bits. Behind a
panel's codes lie its scales, one byte a column and step of 64 values.

Of weights pruned by blocks a panel holds only the steps that are not zero, as many as every other
panel, and a constant of its own says where in A those begin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch.nn import functional as F
from tvm.tirx.script import builder as T

from ..integer import GROUP, column_sums
from ..weights.pruning import ROWS
from . import micro_neon
from .isa import Isa
from .kept import kept, steps_of
from .kernel import Call, Operand, Pack, TensorSpec, Value
from .llvm import Text, attributes
from .micro_int8 import STEP, IntegerMicro
from .pack import ordered, panel_count, round_up
from .pack import panels as pack_panels

Expr = Any
Buffer = Any

#: Entries of the table a kernel reads, whatever the codes need.
TABLE = 16

#: Codes packed at a time.
_PART = 1 << 20


def _scales(scale: torch.Tensor, micro: IntegerMicro, gated: bool) -> torch.Tensor:
    """Group scales ``(N, groups, ...)`` as ``(panels, steps · columns)``."""
    return _bytewise(steps_of(scale, 1).flatten(1), replace(micro, kpack=1), gated)


def _bytewise(matrix: torch.Tensor, micro: IntegerMicro, gated: bool) -> torch.Tensor:
    """Bytes ``(N, K)`` as ``(panels, K · columns)`` in the panels' order."""
    rows, k = matrix.shape
    out = torch.empty(panel_count(rows, micro, gated), k * micro.columns, dtype=torch.uint8)
    pack_panels(out, matrix, replace(micro, panel=torch.uint8), k, gated)
    return out


@dataclass(frozen=True)
class Codes:
    """How one layer's weights lie in memory.

    Attributes:
        micro: who reads the int8 panels.
        depth: steps of 64 values of K.
        steps: of these, how many a panel holds.
        panels: how many.
        bits: of a code; 8 where panels are int8 and need no decoding.
        gated: values and gates lie side by side, see :func:`.pack.panels`.
    """

    micro: IntegerMicro
    depth: int
    steps: int
    panels: int
    bits: int
    gated: bool

    @classmethod
    def of(cls, call: Call, micro: IntegerMicro, gated: bool) -> Codes:
        """The layout of the weight ``(N, C, ...)`` of a coded call."""
        columns, channels, *taps = call["weight"].spec.shape
        depth = -(-channels // STEP) * torch.Size(taps).numel()
        steps = call["kept_steps"] if ROWS % micro.columns == 0 else 0
        table = call["table"]
        entries = table.spec.numel if table else 256
        bits = 8 if entries > TABLE else 4 if entries > 4 else 2
        panels = panel_count(columns, micro, gated)
        return cls(micro, depth, min(steps or depth, depth), panels, bits, gated)

    @property
    def pruned(self) -> bool:
        """Whether panels leave steps out."""
        return self.steps < self.depth

    @property
    def step_bytes(self) -> int:
        """Bytes of a step's codes."""
        return STEP * self.micro.columns * self.bits // 8

    @property
    def panel_bytes(self) -> int:
        """Bytes of a panel with its scales, a multiple of 64."""
        scales = self.micro.columns if self.bits < 8 else 0
        return round_up(self.steps * (self.step_bytes + scales), 64)

    def operand(self, weight: Value, table: Value | None, group_scale: Value | None) -> Operand:
        """The packed panels, of constants."""
        spec = TensorSpec((self.panels, self.panel_bytes), torch.int8)
        micro = self.micro
        key: tuple[Any, ...]
        key = ("codes", self.bits, micro.columns, micro.kpack, micro.vector, self.gated)
        key += (self.steps,) if self.pruned else ()
        values = tuple(v for v in (weight, table, group_scale) if v is not None)
        if self.pruned:
            return Operand(values, Pack.of(key, self._pruned, spec))
        return Operand(values, Pack(key, self._write, spec))

    def offsets(self, weight: Value, table: Value | None, places: tuple[int, ...]) -> Operand:
        """Of pruned weights, the byte offset in A of every panel's steps: int32, panel by panel.

        ``places`` are those of all steps.
        """
        values = tuple(v for v in (weight, table) if v is not None)

        def fn(weight: torch.Tensor, table: torch.Tensor | None = None) -> torch.Tensor:
            return torch.tensor(places, dtype=torch.int32)[self._kept(weight, table)].flatten()

        key = ("offsets", self.micro.columns, self.gated, self.steps, places)
        spec = TensorSpec((self.panels * self.steps,), torch.int32)
        return Operand(values, Pack.of(key, fn, spec))

    def correction(
        self, weight: Value, table: Value | None, group_scale: Value | None, zero: int
    ) -> Operand:
        """What to add to a column's sum where A's zero is not 0: int32, in panel order."""
        values = tuple(v for v in (weight, table, group_scale) if v is not None)
        spec = TensorSpec((self.panels * self.micro.columns,), torch.int32)

        def fn(
            weight: torch.Tensor,
            table: torch.Tensor | None = None,
            group_scale: torch.Tensor | None = None,
        ) -> torch.Tensor:
            sums = column_sums(self._padded(weight, table), table, group_scale)
            return ordered(-zero * sums, self.micro.columns, self.gated)

        key = ("correction", self.micro.columns, self.micro.kpack, zero, self.gated, self.pruned)
        return Operand(values, Pack.of(key, fn, spec))

    def table(self, table: Value) -> Operand:
        """The table, filled up to :data:`TABLE` entries."""
        spec = TensorSpec((TABLE,), torch.int8)
        return Operand((table,), Pack.of("table", lambda t: F.pad(t, (0, TABLE - len(t))), spec))

    def _ordered(self, weight: torch.Tensor) -> torch.Tensor:
        """Bytes of ``(N, C, ...)`` as ``(panels, steps · 64 · columns)`` in the panels' order."""
        return _bytewise(steps_of(weight, STEP).flatten(1), self.micro, self.gated)

    def _padded(self, weight: torch.Tensor, table: torch.Tensor | None) -> torch.Tensor:
        """Pruned weights with the code of zero as padding, since some of it is left out."""
        missing = -weight.shape[1] % STEP
        if not self.pruned or table is None or not missing:
            return weight
        zero = int((table == 0).nonzero()[0])
        return F.pad(weight, (0, 0) * (weight.dim() - 2) + (0, missing), value=zero)

    def _kept(self, weight: torch.Tensor, table: torch.Tensor | None) -> torch.Tensor:
        """The numbers of the steps each panel holds, see :func:`.kept.kept`."""
        live = weight != 0
        if table is not None:
            live = (table != 0).index_select(0, weight.flatten().int()).view(weight.shape)
        return kept(live, self.micro, self.gated, self.steps)

    def _pruned(self, weight: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        """The panels without the steps left out."""
        table = rest[0] if rest else None
        steps = self._kept(weight, table)
        weight = self._padded(weight, table)
        dense = replace(self, steps=self.depth)
        if self.bits == 8:
            return self._fit(self._chosen(dense._int8(weight, *rest), steps))
        codes, scales = dense._codes(weight, rest[1])
        return self._fit(torch.cat([self._chosen(x, steps) for x in (codes, scales)], 1))

    def _chosen(self, panels: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """Of ``(panels, depth · bytes)`` the bytes of the steps kept."""
        every = panels.unflatten(1, (self.depth, -1))
        return every[torch.arange(self.panels)[:, None], steps].flatten(1)

    def _int8(self, weight: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        if rest:
            # Padding is decoded as any code is: what A's zeros add there is corrected for.
            table, group_scale = rest
            scale = group_scale.repeat_interleave(GROUP, dim=1)
            padding = (0, 0) * (weight.dim() - 2) + (0, scale.shape[1] - weight.shape[1])
            weight = table[F.pad(weight, padding).long()] * scale
        return self._ordered(weight.view(torch.uint8)).view(torch.int8)

    def _codes(
        self, weight: torch.Tensor, group_scale: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Packed codes and scales, a panel a row."""
        per = 8 // self.bits
        split = self._ordered(weight).view(self.panels, -1, per, self.micro.vector)
        codes = split[:, :, 0].clone()
        for i in range(1, per):
            codes |= split[:, :, i] << (i * self.bits)
        scales = _scales(group_scale.view(torch.uint8), self.micro, self.gated)
        return codes.flatten(1).view(torch.int8), scales.view(torch.int8)

    def _write(self, out: torch.Tensor, weight: torch.Tensor, *rest: torch.Tensor) -> None:
        """Fill in the panels, a few at a time: a large layer's bytes in between would add up."""
        width = self.micro.columns // 2 if self.gated else self.micro.columns
        halves = 2 if self.gated else 1
        few = max(1, _PART // (width * halves * max(1, weight[0].numel())))

        def some(x: torch.Tensor, first: int) -> torch.Tensor:
            rows = slice(first * width, (first + few) * width)
            return torch.cat([half[rows] for half in x.chunk(halves)])

        for first in range(0, self.panels, few):
            part = replace(self, panels=min(few, self.panels - first))
            codes = some(weight, first)
            if self.bits == 8:
                table = [rest[0], some(rest[1], first)] if rest else []
                parts = [part._int8(codes, *table)]
            else:
                parts = list(part._codes(codes, some(rest[1], first)))
            rows = out[first : first + few]
            for x in parts:
                rows[:, : x.shape[1]] = x
                rows = rows[:, x.shape[1] :]
            rows.zero_()

    def _fit(self, panels: torch.Tensor) -> torch.Tensor:
        return F.pad(panels, (0, self.panel_bytes - panels.shape[1]))

    def texts(self, isa: Isa) -> list[str]:
        """LLVM IR that :meth:`decode` needs."""
        text = self._text(isa) if self.bits < 8 else None
        return [text.ir] if text else []

    def _text(self, isa: Isa) -> Text | None:
        """What decodes on this path; None where plain TIR does."""
        if isa.neon:
            return micro_neon.decode(self.bits, self.micro.columns, self.micro.kpack, STEP)
        if isa.lanes < 8:
            return None
        return _shuffle(self.bits, self.micro.vector, self.micro.columns, self.micro.kpack)

    def decode(
        self,
        isa: Isa,
        packed: Buffer,
        table: Buffer,
        panel: Expr,
        step: Expr,
        steps: Expr,
        room: Buffer,
        at: Expr,
    ) -> None:
        """Emit the decoding of some steps of a panel into int8, at an element of ``room``."""
        start = panel * self.panel_bytes
        codes = T.bind(start + step * self.step_bytes)
        scales = T.bind(start + self.steps * self.step_bytes + step * self.micro.columns)
        text = self._text(isa)
        if text:
            args = [T.address_of(x) for x in (packed[codes], packed[scales], table[0], room[at])]
            T.evaluate(T.call_extern("void", text.name, *args, T.Cast("int64", steps)))
            return
        vector, per, columns = self.micro.vector, 8 // self.bits, self.micro.columns
        row = columns * self.micro.kpack
        with T.serial(steps) as s, T.serial(STEP * columns) as i:
            byte = codes + s * self.step_bytes + T.floordiv(i, vector * per) * vector
            raw = T.Cast("int32", packed[byte + T.floormod(i, vector)])
            shift = T.floormod(T.floordiv(i, vector), per) * self.bits
            code = T.bitwise_and(T.shift_right(raw, shift), T.int32(2**self.bits - 1))
            column = T.floordiv(T.floormod(i, row), self.micro.kpack)
            scale = T.Cast("int32", packed[scales + s * columns + column])
            value = T.Cast("int32", table[code]) * scale
            T.buffer_store(room, T.Cast("int8", value), [at + s * (STEP * columns) + i])


@cache
def _shuffle(bits: int, vector: int, columns: int, packed: int) -> Text:
    """Decoding by byte shuffles, ``vector`` weights at a time.

    A product of two bytes is taken from 16-bit products, of the low bytes and of the high ones.
    """
    name = f"zoomc_decode{bits}_{vector}x{columns}x{packed}"
    bytes_, words = f"<{vector} x i8>", f"<{vector // 2} x i16>"
    per = 8 // bits
    total = STEP * columns // vector
    apart = columns * packed // vector  # scale vectors: a panel row is that many vectors long
    function = {64: "@llvm.x86.avx512.pshuf.b.512", 32: "@llvm.x86.avx2.pshuf.b"}[vector]
    features: Sequence[str] = ("avx512f", "avx512bw") if vector == 64 else ("avx2",)
    mask = 2**bits - 1
    held = vector // packed
    repeated = ", ".join(f"i32 {i % 16}" for i in range(vector))
    out = [
        f"declare {bytes_} {function}({bytes_}, {bytes_})",
        f"define void @{name}(ptr %codes, ptr %scales, ptr %table, ptr %out, i64 %n) #0 {{",
        "entry:",
        "  %t = load <16 x i8>, ptr %table, align 1",
        f"  %lut = shufflevector <16 x i8> %t, <16 x i8> poison, <{vector} x i32> <{repeated}>",
        "  br label %loop",
        "loop:",
        "  %k = phi i64 [0, %entry], [%k1, %loop]",
        f"  %so = mul nuw nsw i64 %k, {columns}",
        "  %sp = getelementptr i8, ptr %scales, i64 %so",
        f"  %co = mul nuw nsw i64 %k, {STEP * columns * bits // 8}",
        "  %cp = getelementptr i8, ptr %codes, i64 %co",
        f"  %oo = mul nuw nsw i64 %k, {STEP * columns}",
        "  %op = getelementptr i8, ptr %out, i64 %oo",
    ]
    for v in range(apart):
        lane = {4: "i32", 2: "i16"}[packed]
        out += [
            f"  %sp{v} = getelementptr i8, ptr %sp, i64 {v * held}",
            f"  %sb{v} = load <{held} x i8>, ptr %sp{v}, align 1",
            f"  %sw{v} = zext <{held} x i8> %sb{v} to <{held} x {lane}>",
        ]
        if packed == 4:
            out += [
                f"  %sm{v} = mul <{held} x i32> %sw{v}, splat (i32 65537)",
                f"  %s{v} = bitcast <{held} x i32> %sm{v} to {words}",
            ]
        else:
            out.append(f"  %s{v} = add {words} %sw{v}, zeroinitializer")
    for c in range(total // per):
        out += [
            f"  %cp{c} = getelementptr i8, ptr %cp, i64 {c * vector}",
            f"  %c{c} = load {words}, ptr %cp{c}, align 1",
        ]
        for i in range(per):
            v = c * per + i
            s = f"%s{v % apart}"
            out += [
                f"  %h{v} = lshr {words} %c{c}, splat (i16 {i * bits})",
                f"  %i{v} = and {words} %h{v}, splat (i16 {mask * 257})",
                f"  %j{v} = bitcast {words} %i{v} to {bytes_}",
                f"  %w{v} = call {bytes_} {function}({bytes_} %lut, {bytes_} %j{v})",
                f"  %x{v} = bitcast {bytes_} %w{v} to {words}",
                f"  %e{v} = mul {words} %x{v}, {s}",
                f"  %f{v} = and {words} %e{v}, splat (i16 255)",
                f"  %g{v} = and {words} %x{v}, splat (i16 -256)",
                f"  %o{v} = mul {words} %g{v}, {s}",
                f"  %y{v} = or {words} %f{v}, %o{v}",
                f"  %yp{v} = getelementptr i8, ptr %op, i64 {v * vector}",
                f"  store {words} %y{v}, ptr %yp{v}, align 1",
            ]
    out += [
        "  %k1 = add nuw nsw i64 %k, 1",
        "  %end = icmp eq i64 %k1, %n",
        "  br i1 %end, label %done, label %loop",
        "done:",
        "  ret void",
        "}",
    ]
    return Text(name, "\n".join(out) + "\n" + attributes(features))
