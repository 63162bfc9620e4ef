"""Every knob of the compiler: one dataclass with defaults, checks, help and environment names."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from .errors import OptionValueError, UnknownOptionError
from .kernels.tir.isa import PATHS
from .kernels.weights.encoding import SPELLINGS, Encoding, EncodingError

ENV_PREFIX = "ZOOMC_"

#: What ``torch.compile(mode=...)`` means here: options, or None where the mode is refused.
MODES: dict[str, dict[str, Any]] = {
    "default": {},
    # A zoomc step is one call into one compiled graph already: there is no launch overhead left.
    "reduce-overhead": {},
}


def _choice(*names: str) -> Callable[[str, Any], Any]:
    def check(name: str, value: Any) -> Any:
        if value not in names:
            raise OptionValueError(name, value, "one of " + ", ".join(map(repr, names)))
        return value

    return check


def _integer(low: int, high: int | None = None) -> Callable[[str, Any], Any]:
    limit = f"from {low} to {high}" if high is not None else f"of {low} or more"

    def check(name: str, value: Any) -> Any:
        try:
            number = int(value)
        except (TypeError, ValueError):
            number = low - 1
        if isinstance(value, bool) or number < low or (high is not None and number > high):
            raise OptionValueError(name, value, f"a whole number {limit}")
        return number

    return check


def _flag(name: str, value: Any) -> Any:
    words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if isinstance(value, bool):
        return value
    try:
        return words[str(value).lower()]
    except KeyError:
        raise OptionValueError(name, value, "true or false") from None


def _encoding(name: str, value: Any) -> Any:
    try:
        return str(Encoding.parse(str(value)))
    except EncodingError:
        raise OptionValueError(name, value, SPELLINGS) from None


def _below(limit: float, takes: str) -> Callable[[str, Any], Any]:
    """A positive number below a limit, or none."""

    def check(name: str, value: Any) -> Any:
        if value is None or value == "":
            return None
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = -1.0
        if isinstance(value, bool) or not 0 < number < limit:
            raise OptionValueError(name, value, takes)
        return number

    return check


_fraction = _below(1, "a fraction between 0 and 1, such as 0.05")
_milliwatts = _below(float("inf"), "milliwatts, such as 1200")


def _name(name: str, value: Any) -> Any:
    if isinstance(value, (str, os.PathLike)) and os.fspath(value):
        return os.fspath(value)
    raise OptionValueError(name, value, "a name or a path")


def _path(name: str, value: Any) -> Any:
    if value is None or isinstance(value, (str, os.PathLike)):
        return os.fspath(value) if value else None
    raise OptionValueError(name, value, "a folder")


def _option(default: Any, check: Callable[[str, Any], Any], help: str) -> Any:
    return field(default=default, metadata={"check": check, "help": help})


@dataclass(frozen=True)
class Options:
    """Compiler options, as ``torch.compile(..., options={name: value})`` takes them.

    Each may also come from the environment as ``ZOOMC_<NAME>``; a value in ``options`` wins.

    Raises:
        UnknownOptionError: for a name that does not exist, with the nearest one that does.
        OptionValueError: for a value an option cannot take, with those it can.
    """

    target: str = _option("auto", _choice("auto", "cpu", "triton", "npu"), "machine to compile for")
    weights: str = _option(
        "int4",
        _encoding,
        "how weights are stored: keep = as they are; int8, int4, shared (16 values of the layer's"
        " own; shared:4, shared:256); pruned with +2:4, +50% or +blocks50%, as in int4+2:4",
    )
    attention: str = _option(
        "auto",
        _choice("auto", "int8", "bf16", "keep"),
        "what attention multiplies: int8, bf16, keep = the compute type; auto = the fastest on this"
        " machine, unless weights are kept",
    )
    max_error: float | None = _option(
        None,
        _fraction,
        "relative error of the outputs that weights and attention may cause: layers take more bits"
        " until the error measured on the first call's inputs is within it",
    )
    calibrate: bool = _option(
        True,
        _flag,
        "choose 2- to 8-bit codes of a table by the activations of the first call's inputs: less"
        " error, a somewhat longer compilation",
    )
    smooth: bool = _option(
        True,
        _flag,
        "fold powers of two by which channels differ on the first call's inputs out of a norm and"
        " into the coded weight behind it, where that lowers the error; with calibrate only",
    )
    activations: str = _option(
        "auto",
        _choice("auto", "int8"),
        "what weights in codes are multiplied by: int8 = integers, the same on every target; auto ="
        " the compute type where a GPU is faster so, since memory is the limit",
    )
    scales: str = _option(
        "dynamic",
        _choice("dynamic", "static"),
        "what int8 activations are scaled by: dynamic = the extremes of each image and token;"
        " static = what each layer read on the first call, beyond which values are clamped",
    )
    dtype: str = _option(
        "model",
        _choice("model", "fp32", "bf16", "fp16"),
        "compute type; model = whatever the model has",
    )
    isa: str = _option(
        "auto",
        _choice("auto", *(path.name for path in PATHS)),
        "instruction-set path of the CPU target",
    )
    npu: str = _option(
        "mobile",
        _name,
        "machine of the NPU target: eyeriss, mobile, systolic, or the path of a TOML file",
    )
    power_limit: float | None = _option(
        None,
        _milliwatts,
        "milliwatts the NPU and its memory may take: each layer runs at the highest clock that"
        " keeps it",
    )
    threads: int = _option(
        0, _integer(0, 1024), "worker threads; 0 = as many as torch.get_num_threads()"
    )
    reuse: bool = _option(
        True,
        _flag,
        "keep what depends on one input alone while that stays the same from call to call, such as"
        " keys and values of a prompt; on a CPU",
    )
    cuda_graph: bool = _option(
        True, _flag, "on a GPU: record a step once as a CUDA graph and replay it"
    )
    tune: bool = _option(
        False,
        _flag,
        "measure the few best tiles of each kernel before its first use, and keep the fastest in"
        " the tuning file",
    )
    tuning: str = _option(
        "auto",
        _name,
        "file of what tuning found, which compilation uses; auto = zoomc/tuning.jsonl in the user's"
        " cache folder, off = none",
    )
    variants: int = _option(
        4, _integer(1), "compiled input shapes kept; the least recently used is dropped"
    )
    fallback: str = _option(
        "eager",
        _choice("eager", "error"),
        "what the target cannot lower: run it in eager, or raise",
    )
    debug: int = _option(
        0,
        _integer(0, 5),
        "print 1 a summary, 2 time per kernel, 3 choices, 4 generated code, 5 graphs",
    )
    dump: str | None = _option(None, _path, "folder for the graph after every pass")
    fuel: int = _option(-1, _integer(-1), "rewrites allowed in all; -1 = no limit; to bisect")
    validate: bool = _option(
        False, _flag, "run every operator against its reference and print a table of errors"
    )

    def __post_init__(self) -> None:
        for option in fields(self):
            value = option.metadata["check"](option.name, getattr(self, option.name))
            object.__setattr__(self, option.name, value)
        exact = self.weights == "keep" and self.attention in ("auto", "keep")
        if self.max_error is not None and exact:
            raise OptionValueError(
                "max_error", self.max_error, 'effect only with weights that lose something: "int4"'
            )
        if self.power_limit is not None and self.target != "npu":
            raise OptionValueError("power_limit", self.power_limit, 'effect only with target="npu"')

    @classmethod
    def resolve(cls, mode: str | None = None, options: Mapping[str, Any] | None = None) -> Options:
        """Options from the environment, then the mode, then what the caller wrote.

        Args:
            mode: ``torch.compile``'s, see :data:`MODES`.
            options: option values by name.
        """
        known = {option.name for option in fields(cls)}
        merged: dict[str, Any] = {}
        for variable, value in os.environ.items():
            if variable.startswith(ENV_PREFIX):
                name = variable.removeprefix(ENV_PREFIX).lower()
                if name not in known:
                    raise UnknownOptionError(name, known)
                merged[name] = value
        if mode is not None:
            if mode not in MODES:
                raise OptionValueError("mode", mode, "one of " + ", ".join(map(repr, MODES)))
            merged |= MODES[mode]
        for name, value in (options or {}).items():
            if name not in known:
                raise UnknownOptionError(name, known)
            merged[name] = value
        return cls(**merged)


def describe() -> list[tuple[str, Any, str, str]]:
    """``(name, default, environment name, help)`` of every option, for people."""
    return [
        (o.name, o.default, ENV_PREFIX + o.name.upper(), o.metadata["help"])
        for o in fields(Options)
    ]
