"""Two memories, far and near, as the planner sees them."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import MachineError

KIB = 1024 * 8  # bits


@dataclass(frozen=True)
class Words:
    """Bits of one element of each operand.

    Attributes:
        input: activations read.
        weight: weights in far memory.
        output: activations written.
        psum: partial sums, wherever they are; an output tile holds them until it is finished.
        near_weight: weights in near memory, where they may lie decoded; 0 = as in far memory.
        scale: bits of the scale that ``group`` consecutive input channels share, per tap and output
            channel; 0 = none.
        group: input channels that share a scale.
    """

    input: int = 16
    weight: int = 16
    output: int = 16
    psum: int = 16
    near_weight: int = 0
    scale: int = 0
    group: int = 64

    def __post_init__(self) -> None:
        if min(self.input, self.weight, self.output, self.psum, self.group) < 1:
            raise MachineError(f"{self}: every word must have at least one bit")
        if self.near_weight < 0 or self.scale < 0:
            raise MachineError(f"{self}: words cannot have a negative number of bits")

    def weights(self, depth: int) -> int:
        """Bits in far memory of one output channel's weights for one tap and ``depth`` inputs."""
        return depth * self.weight + -(-depth // self.group) * self.scale

    def near_weights(self, depth: int) -> int:
        """The same in near memory."""
        return depth * self.near_weight if self.near_weight else self.weights(depth)


#: 4-bit codes with an 8-bit scale for every 64 input channels, int8 activations, int32 sums.
W4A8 = Words(input=8, weight=4, output=8, psum=32, scale=8)
W8A8 = Words(input=8, weight=8, output=8, psum=32)


@dataclass(frozen=True)
class Costs:
    """Energy in picojoules.

    Attributes:
        far_read: per bit read from far memory.
        far_write: per bit written to far memory.
        near: per bit read from or written to near memory.
        mac: per multiply-accumulate.
    """

    far_read: float = 8.0
    far_write: float = 8.0
    near: float = 0.17
    mac: float = 0.25

    def __post_init__(self) -> None:
        if min(self.far_read, self.far_write, self.near, self.mac) < 0:
            raise MachineError(f"{self}: energies cannot be negative")


@dataclass(frozen=True)
class Memory:
    """The near memory, the words that travel, and how they travel.

    Attributes:
        near: bits of near memory that all operands share; or bits for each of ``input``,
            ``weight`` and ``output`` where each has a buffer of its own.
        words: bits of each operand's elements.
        bus: bits of a bus word; every contiguous run is counted in whole, aligned bus words. 0
            counts bits alone.
        layout: how activations lie in far memory, ``nhwc`` or ``nchw``. Weights lie tile by tile.
        double_buffered: a buffer that is filled more than once is held twice, so that the next
            tile arrives while this one is used.
        granule: least tile of ``input`` and ``output`` channels: what a MAC array takes at once.
        array: input and output channels that one step of the MAC array takes; an input is read
            from near memory once for ``array[1]`` output channels, a sum once for ``array[0]``
            input channels.
        costs: energies.
    """

    near: int | tuple[int, int, int]
    words: Words = field(default_factory=Words)
    bus: int = 0
    layout: str = "nhwc"
    double_buffered: bool = False
    granule: tuple[int, int] = (1, 1)
    array: tuple[int, int] = (16, 16)
    costs: Costs = field(default_factory=Costs)

    def __post_init__(self) -> None:
        sizes = self.near if isinstance(self.near, tuple) else (self.near,)
        if min(sizes) < 1:
            raise MachineError(f"near memory of {self.near} bits: it must hold something")
        if self.bus < 0 or min(*self.granule, *self.array) < 1:
            raise MachineError("bus width cannot be negative, granule and array must be ≥ 1")
        if self.layout not in {"nhwc", "nchw"}:
            raise MachineError(f"layout {self.layout!r}: it must be 'nhwc' or 'nchw'")

    @property
    def capacity(self) -> int:
        """All bits of near memory."""
        return sum(self.near) if isinstance(self.near, tuple) else self.near

    def fits(self, footprint: tuple[int, int, int]) -> bool:
        """Whether buffers of so many bits for input, weight and output fit."""
        if isinstance(self.near, tuple):
            return all(have >= need for have, need in zip(self.near, footprint, strict=True))
        return sum(footprint) <= self.near
