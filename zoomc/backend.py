"""The compiler's story on one page: capture, passes, target, and what is kept between calls."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch._dynamo.convert_frame import compile_lock

from . import passes, targets
from .capture import (
    capture,
    check_device,
    check_inference,
    number_positions,
    weight_names,
    weight_position,
)
from .errors import FallbackError, ZoomcError
from .kernels.errors import first_line
from .options import Options
from .record import Record, announce
from .targets.constants import Constants
from .targets.tensors import on_device
from .watch import WeightWatch

_DTYPES = {"model": None, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

#: Every compiled graph that is still in use, so that ``zoomc.refresh`` finds a model's.
_LIVE: weakref.WeakSet[CompiledGraph] = weakref.WeakSet()


def zoomc(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """The ``torch.compile`` backend: ``torch.compile(model, backend="zoomc", options={...})``.

    Args:
        gm: Dynamo's graph, every parameter and buffer an input.
        example_inputs: the inputs of the first call; sizes may be symbolic.
        mode: ``torch.compile``'s; see :data:`zoomc.options.MODES`.
        options: see :class:`zoomc.options.Options`.

    Returns:
        a callable with the graph's own signature.

    Raises:
        ZoomcError: a subclass for each mistake a user can make.
    """
    settings = Options.resolve(mode, options)
    check_inference(example_inputs)
    return CompiledGraph(gm, example_inputs, settings)


class CompiledGraph:
    """One Dynamo graph: compiled for each input shape it meets, weights shared among them."""

    def __init__(self, gm: fx.GraphModule, example_inputs: Sequence[Any], options: Options) -> None:
        self.options = options
        self._gm = gm
        self._names = weight_names(gm, example_inputs)
        self._numbers = number_positions(gm)
        self._weights = {i: example_inputs[i] for i in self._names}
        self._watch = WeightWatch(list(self._weights.values()))
        twin = self._twin()
        self._constants: Constants = Constants(self._weight, twin._constants if twin else None)
        self._variants: OrderedDict[Any, Variant] = OrderedDict()
        #: What layers were seen to read: variants choose codes by the same, and so share them.
        self._moments: passes.Moments | None = {} if options.calibrate else None
        #: The same for scales: None where each call finds its own.
        self._ranges: passes.Ranges | None = {} if options.scales == "static" else None
        #: The same for what norms give the weights behind them: None where they are left alone.
        self._smoothing: passes.Smoothing | None = None
        if options.calibrate and options.smooth:
            self._smoothing = {}
        if twin:
            self._moments, self._ranges = twin._moments, twin._ranges
            self._smoothing = twin._smoothing
        self._learned = False
        self._lock = threading.RLock()
        _LIVE.add(self)

    def __call__(self, *args: Any) -> Any:
        """Run on the graph's inputs, compiling first if their shapes are new."""
        with self._lock:
            check_inference(args)
            weights = {i: args[i] for i in self._names}
            changed = self._watch.look(list(weights.values()))
            # A GPU is given the step before it has answered, and so has work meanwhile.
            late = self._known(args) if callable(changed) else None
            if late is None and (changed() if callable(changed) else changed):
                self._adopt(weights)
            variant = late or self._variant(args)
        result = variant(*args)
        if late and callable(changed) and changed():
            with self._lock:
                self._adopt(weights)
                variant = self._variant(args)
            result = variant(*args)
        self._watch.rest()
        return result

    def refresh(self) -> None:
        """Pack the weights again, whether or not they look changed."""
        with self._lock:
            self._adopt(self._weights)

    def owns(self, tensors: set[int]) -> bool:
        """Whether any of this graph's weights is among tensors given by ``id``."""
        return any(id(weight) in tensors for weight in self._weights.values())

    def _twin(self) -> CompiledGraph | None:
        """A graph of the same weights by the same names, as Dynamo makes of another shape.

        What it packed and learned is of use as long as its weights are what they were.
        """
        named = self._named()
        for other in list(_LIVE):
            same = named and other.options == self.options and other._named() == named
            if same and not other._watch.changed(list(other._weights.values())):
                return other
        return None

    def _named(self) -> dict[str, int]:
        """Which tensor each name stands for."""
        return {name: id(self._weights[i]) for i, name in self._names.items()}

    def _weight(self, attribute: str) -> torch.Tensor | None:
        """The current tensor of a weight's attribute; None if it names no weight."""
        position = weight_position(attribute)
        return None if position is None else self._weights[position]

    def _adopt(self, weights: dict[int, torch.Tensor]) -> None:
        """Take new weights: pack again, or compile again where shapes or dtypes changed."""
        old, self._weights = self._weights, weights
        same = all(w.shape == old[i].shape and w.dtype == old[i].dtype for i, w in weights.items())
        self._watch.remember(list(weights.values()))
        self._constants.forget()
        if self._learned:  # codes or scales were chosen by what the old weights made of inputs
            for seen in (self._moments, self._ranges, self._smoothing):
                if seen is not None:
                    seen.clear()
            self._learned, same = False, False
        if not same:
            self._variants.clear()
        for variant in self._variants.values():
            variant.executable.bind()

    def _key(self, args: Sequence[Any]) -> Any:
        """What tells the variants apart."""
        return tuple(self._facts(i, x) for i, x in enumerate(args) if i not in self._names)

    def _known(self, args: Sequence[Any]) -> Variant | None:
        """The variant for these inputs, if there is one whose calls leave no trace."""
        variant = self._variants.get(self._key(args))
        return variant if variant and variant.pure else None

    def _variant(self, args: Sequence[Any]) -> Variant:
        """The variant for these inputs' shapes and dtypes, the last few of which are kept."""
        key = self._key(args)
        if key in self._variants:
            self._variants.move_to_end(key)
            return self._variants[key]
        with on_device(args):
            variant = self._compile(args)
        self._variants[key] = variant
        while len(self._variants) > self.options.variants:
            self._variants.popitem(last=False)
        return variant

    def _facts(self, position: int, value: Any) -> Any:
        """What compiled code depends on in an argument."""
        if not isinstance(value, torch.Tensor):
            return value
        if position in self._numbers:
            return value.item()
        return tuple(value.shape), value.dtype, value.device

    def _compile(self, args: Sequence[Any]) -> Variant:
        """Capture, rewrite, build."""
        options, record = self.options, Record(self.options)
        target = self._target(args)
        check_device(args, target.device)
        with record.stage("capture"):
            try:
                # Export patches nn.Module while it traces, for all threads: no other thread may
                # export, nor Dynamo trace, meanwhile.
                with compile_lock:
                    program = capture(self._gm, args, self._names)
            except ZoomcError:
                raise
            except Exception as error:
                return self._eager(error, record)
        with record.stage("passes"):
            context = passes.Context(
                dtype=target.compute_dtype(_DTYPES[options.dtype], program.graph),
                weights=options.weights,
                attention=options.attention,
                max_error=options.max_error,
                moments=self._moments,
                ranges=self._ranges,
                smoothing=self._smoothing,
                inputs=[args[i] for i in program.inputs],
                refuses=target.refuses,
                weight_only=target.weight_only,
                cost=target.cost,
                fuel=None if options.fuel < 0 else options.fuel,
                dump=Path(options.dump) if options.dump else None,
                validate=passes.Validator([args[i] for i in program.inputs])
                if options.validate
                else None,
            )
            record.trace = passes.run(program.graph, context)
            # What new weights would gain from smoothing alone is no reason to compile again.
            smoothed = any(factors is not None for factors in (self._smoothing or {}).values())
            self._learned |= bool(self._moments or self._ranges) or smoothed
        with record.stage("target"):
            executable = target.compile(program.graph, self._constants)
        record.finish(program.graph, executable)
        record.inspect([args[i] for i in program.inputs])
        announce(record)
        return Variant(program.inputs, program.mutated, program.pick, executable)

    def _target(self, args: Sequence[Any]) -> Any:
        name = self.options.target
        if name == "auto":
            device = next((x.device.type for x in args if isinstance(x, torch.Tensor)), "cpu")
            name = targets.for_device(device) or "cpu"
        return targets.create(name, self.options)

    def _eager(self, error: Exception, record: Record) -> Variant:
        """Run the whole graph in eager, because it could not be captured."""
        reason = f"the graph could not be exported: {first_line(error)}"
        if self.options.fallback == "error":
            raise FallbackError(reason) from error
        warnings.warn(f"zoomc runs this graph in eager: {reason}", stacklevel=2)
        record.fail(reason)
        announce(record)
        executable = targets.Eager(self._gm.forward, {"fallbacks": record.fallbacks})
        return Variant(None, [], lambda values: values, executable)


class Variant:
    """A graph compiled for one set of input shapes."""

    def __init__(
        self,
        inputs: Sequence[int] | None,
        mutated: Sequence[int],
        pick: Callable[[Sequence[Any]], Any],
        executable: targets.Executable,
    ) -> None:
        self.executable = executable
        self._inputs = inputs
        self._mutated = mutated
        self._pick = pick
        #: Whether a call changes nothing: one whose result is thrown away never was.
        self.pure = inputs is not None and not mutated

    def __call__(self, *args: Any) -> Any:
        """Run on the graph's inputs; in-place updates of arguments are written back."""
        inputs = args if self._inputs is None else [args[i] for i in self._inputs]
        outputs = self.executable(*inputs)
        with torch.no_grad():
            for position, value in zip(self._mutated, outputs, strict=False):
                args[position].copy_(value)
        return self._pick(outputs[len(self._mutated) :])


def refresh(model: torch.nn.Module) -> None:
    """Pack a compiled model's weights again.

    Only needed after a write that torch does not count, to a few elements of a large model through
    ``.data``, within seconds of a call; every other change is noticed.
    """
    tensors = {id(t) for t in (*model.parameters(), *model.buffers())}
    for graph in list(_LIVE):
        if graph.owns(tensors):
            graph.refresh()
