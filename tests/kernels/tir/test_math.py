"""Elementary functions against double precision, in units in the last place."""

import math

import numpy as np
import pytest
import torch
import tvm
from torch.nn import functional as F
from zoomc.kernels.activation import ACTIVATIONS
from zoomc.kernels.tir import isa as paths
from zoomc.kernels.tir import math as fast
from zoomc.kernels.tir.kernel import TensorSpec
from zoomc.kernels.tir.memory import load, store
from zoomc.kernels.tir.primfunc import prim_func

ISAS = [name for name in ("amx", "avx2", "portable") if name in paths.supported()]

#: name → reference and the units in the last place that it may be off.
FUNCTIONS = {
    "exp": (torch.exp, 2),
    "exp2": (torch.exp2, 2),
    "expm1": (torch.expm1, 2),
    "log": (torch.log, 2),
    "log2": (torch.log2, 2),
    "log10": (torch.log10, 3),
    "log1p": (torch.log1p, 3),
    "tanh": (torch.tanh, 2),
    "erf": (torch.erf, 3),
    "sqrt": (torch.sqrt, 1),
    "rsqrt": (torch.rsqrt, 2),
    "sin": (torch.sin, 2),
    "cos": (torch.cos, 2),
}


def arguments() -> torch.Tensor:
    """Bit patterns from the whole range, and the places where something happens."""
    edges = [0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45, -1e-45, 3.4e38, 88.72, 88.8, -103.0]
    bits = torch.arange(-(2**31), 2**31, 65_003, dtype=torch.int64).to(torch.int32)
    x = torch.cat([torch.tensor(edges), bits.view(torch.float32), torch.linspace(-20, 20, 9_973)])
    return x[: x.numel() // 16 * 16].contiguous()


def evaluate(fn, x: torch.Tensor, isa: str) -> torch.Tensor:
    from tvm.tirx.script import builder as T

    path = paths.isa(isa, 1)
    n = path.lanes
    spec = TensorSpec(tuple(x.shape), torch.float32)

    def body(buffers):
        with T.serial(x.numel() // n) as i:
            store(buffers[1], [i * n], fn(load(buffers[0], [i * n], n), n), n)

    library = tvm.compile(
        tvm.IRModule({"main": prim_func([spec, spec], [], body)}),
        target=tvm.target.Target(path.target),
    )
    y = torch.empty_like(x)
    library["main"](x, y)
    return y


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_units_in_the_last_place(name, isa):
    reference, allowed = FUNCTIONS[name]
    x = arguments()
    if name in ("sin", "cos"):
        x = torch.where(x.abs() < 2.0**27, x, torch.full_like(x, math.inf))
    y = evaluate(getattr(fast, name), x, isa).double()
    exact = reference(x.double())
    rounded = exact.float()
    assert torch.equal(y.isnan(), rounded.isnan())
    assert torch.equal(y[rounded.isinf()], rounded[rounded.isinf()].double())
    finite = rounded.isfinite()
    with np.errstate(invalid="ignore"):
        unit = torch.from_numpy(np.spacing(rounded.abs().numpy())).double()
    error = ((y - exact).abs() / unit.clamp(min=2.0**-149))[finite]
    assert error.max() <= allowed, (float(error.max()), x[finite][error.argmax()])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name, isa):
    """Absolute error: in the tails torch's own results are differences that cancel."""
    x = torch.linspace(-30, 30, 16_000)
    y = evaluate(fast.ACTIVATIONS[name], x, isa)
    exact = ACTIVATIONS[name](x.double())
    assert ((y - exact).abs() <= 4e-7 * x.abs().clamp(min=1)).all()
    assert evaluate(fast.ACTIVATIONS[name], torch.full((16,), math.nan), isa).isnan().all()


def test_same_names_as_the_references():
    assert fast.ACTIVATIONS.keys() == ACTIVATIONS.keys()


def test_sigmoid_saturates():
    x = torch.tensor([-math.inf, -200.0, -1.0, 0.0, 1.0, 200.0, math.inf, math.nan] * 2)
    y = evaluate(fast.sigmoid, x, "auto")
    torch.testing.assert_close(y, torch.sigmoid(x), equal_nan=True)
    assert F.sigmoid(x).isnan().sum() == 2
