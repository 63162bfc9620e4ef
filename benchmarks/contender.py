"""One contender in its own process: build, compile, then run once per line on standard input."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: What makes its inputs of a model's, what runs on them, the seconds it took to be ready, and the
#: bytes of its weights (OpenVINO's: of the converted model's constants).
Contender = tuple[Callable[[Any, Any], Any], Callable[[Any], Any], float, int]

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def main() -> None:
    """Command line, see compare.py."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    for option in ("--model", "--dtype", "--weights", "--folder"):
        parser.add_argument(option)
    for option in ("--batch", "--size", "--threads"):
        parser.add_argument(option, type=int)
    parser.add_argument("--max-error", type=float)
    arguments = parser.parse_args()
    # Answers go to the real standard output; whatever libraries print goes to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")

    import torch

    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    from models import build, inputs

    model, *first = build(arguments.model, arguments.batch, arguments.size)
    second = inputs(arguments.model, arguments.batch, arguments.size, seed=2)
    reference = Path(arguments.folder, "reference.pt")
    dtype = (
        torch.float32 if arguments.name == "reference" else getattr(torch, DTYPES[arguments.dtype])
    )
    if not arguments.name.startswith("openvino"):
        model.to(dtype)
    reset_peak()
    prepare, run, compile_seconds, weights = CONTENDERS[arguments.name](
        model, *first, dtype, arguments
    )
    prepared = prepare(*first)
    # The second input is one that nothing was compiled or calibrated for.
    outputs = [run(prepared).clone(), run(prepare(*second)).clone()]
    if arguments.name == "reference":
        torch.save(outputs, reference)
    errors = [
        float((got.double() - want.double()).norm() / want.double().norm())
        for got, want in zip(outputs, torch.load(reference), strict=True)
    ]
    ready = {
        "compile": compile_seconds,
        "error": errors[0],
        "error_elsewhere": errors[1],
        "peak_gb": peak_gb(),
        "weights_gb": weights / 1e9,
    }
    print(json.dumps(ready), file=answers, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        run(prepared)
        print(json.dumps({"seconds": time.perf_counter() - start}), file=answers, flush=True)


def first_tensor(output: Any) -> Any:
    """The first tensor of a model's output."""
    import torch

    return torch.utils._pytree.tree_leaves(dict(output) if hasattr(output, "keys") else output)[0]


def peak_gb() -> float:
    """Largest resident size since the last reset, in GB."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def reset_peak() -> None:
    """Count the peak from here: building the model in fp32 is nobody's figure."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def cast(value: Any, dtype: Any) -> Any:
    """Floating tensors in a dtype, in any nesting."""
    import torch

    def leaf(x: Any) -> Any:
        return x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x

    return torch.utils._pytree.tree_map(leaf, value)


def modules(call: Callable[..., Any], dtype: Any, seconds: float, weights: int) -> Contender:
    """A contender that is called as the model is."""

    def run(prepared: Any) -> Any:
        args, kwargs = prepared
        return first_tensor(call(*args, **kwargs))

    return lambda args, kwargs: (cast(args, dtype), cast(kwargs, dtype)), run, seconds, weights


def held(model: Any) -> int:
    """Bytes of a module's parameters and buffers."""
    return sum(t.nbytes for t in (*model.parameters(), *model.buffers()))


def eager(model: Any, args: Any, kwargs: Any, dtype: Any, _: Any) -> Contender:
    """torch as it is."""
    return modules(model, dtype, 0.0, held(model))


def inductor(model: Any, args: Any, kwargs: Any, dtype: Any, _: Any) -> Contender:
    """torch.compile's own backend with frozen weights, from a cold cache."""
    import tempfile

    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp()
    import torch
    from torch._inductor import config

    config.freezing = True
    compiled = torch.compile(model)
    return modules(compiled, dtype, first_call(compiled, args, kwargs, dtype), held(model))


def zoomc(model: Any, args: Any, kwargs: Any, dtype: Any, arguments: Any) -> Contender:
    """zoomc on the same model in the same dtype."""
    import torch

    from zoomc.backend import zoomc as backend
    from zoomc.record import collect

    options = {"weights": arguments.weights, "fallback": "error"}
    if arguments.max_error:
        options["max_error"] = arguments.max_error
    compiled = torch.compile(model, backend=lambda gm, x: backend(gm, x, options=options))
    with collect() as records:
        seconds = first_call(compiled, args, kwargs, dtype)
    weights = sum(record.executable.report["weight_bytes"] for record in records)
    return modules(compiled, dtype, seconds, weights)


def first_call(compiled: Any, args: Any, kwargs: Any, dtype: Any) -> float:
    """The seconds a model's first call took."""
    args, kwargs = cast(args, dtype), cast(kwargs, dtype)
    start = time.perf_counter()
    compiled(*args, **kwargs)
    return time.perf_counter() - start


def openvino(
    model: Any,
    args: Any,
    kwargs: Any,
    dtype: Any,
    arguments: Any,
    compress: Callable[[Any, list[Any]], Any] = lambda model, inputs: model,
) -> Contender:
    """OpenVINO from the fp32 model, the precision as a hint."""
    import openvino as ov
    import torch

    class Plain(torch.nn.Module):
        def forward(self, *x: Any) -> Any:
            return first_tensor(model(*x, return_dict=False))

    start = time.perf_counter()
    shapes = [tuple(x.shape) for x in args]
    inputs = [x.numpy() for x in args]
    converted = compress(ov.convert_model(Plain(), example_input=args, input=shapes), inputs)
    hint = {"fp32": "f32", "bf16": "bf16"}[arguments.dtype]
    settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": arguments.threads}
    request = ov.Core().compile_model(converted, "CPU", settings).create_infer_request()

    def run(inputs: list[Any]) -> Any:
        return torch.from_numpy(request.infer(inputs)[0])

    seconds = time.perf_counter() - start
    constants = (op for op in converted.get_ops() if op.get_type_name() == "Constant")
    weights = sum(op.get_byte_size() for op in constants)
    return lambda args, _: [x.numpy() for x in args], run, seconds, weights


def openvino_int8(*inputs: Any) -> Contender:
    """OpenVINO with weights and activations in 8 bits, calibrated on the input itself."""
    import nncf

    def compress(model: Any, example: list[Any]) -> Any:
        return nncf.quantize(
            model,
            nncf.Dataset([example]),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=2,
        )

    return openvino(*inputs, compress=compress)


def openvino_int4(*inputs: Any) -> Contender:
    """OpenVINO with weights in 4 bits where it can: its linear layers. The others get 8."""
    import nncf

    def compress(model: Any, _: list[Any]) -> Any:
        return nncf.compress_weights(
            model,
            mode=nncf.CompressWeightsMode.INT4_ASYM,
            group_size=64,
            ratio=1.0,
            all_layers=True,
        )

    return openvino(*inputs, compress=compress)


CONTENDERS = {
    "reference": eager,
    "eager": eager,
    "inductor": inductor,
    "openvino": openvino,
    "openvino_int8": openvino_int8,
    "openvino_int4": openvino_int4,
    "zoomc": zoomc,
}

if __name__ == "__main__":
    main()
