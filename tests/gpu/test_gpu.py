"""What only a GPU can show: ``pytest -m gpu``."""

from __future__ import annotations

import contextlib
import gc
from typing import Any

import pytest
import torch
import zoomc.kernels.attention.op
import zoomc.kernels.conv2d.op
import zoomc.kernels.linear.op
import zoomc.kernels.norm.op
from zoomc.kernels.operator import OPERATORS

import zoomc
from zoomc.record import collect

from ..kernels.coded import coded, exact
from ..models import clip_text, sd2_unet, vae_decoder, vae_encoder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]

SAME = [1, 1, 1, 1]
#: Of a result rounded once, of operands rounded before, and of sums in parts of fp32.
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: 2e-5}


def wide(x: Any) -> Any:
    if isinstance(x, torch.Tensor):
        return x.double() if x.is_floating_point() else x
    return [wide(t) for t in x] if isinstance(x, list) and isinstance(x[0], torch.Tensor) else x


def kernels(op: str, *args: Any, gather: bool = False, **kwargs: Any) -> list[tuple[Any, Any]]:
    """Every candidate of a call with its result; those the GPU has no room for are passed over."""
    from triton.runtime.errors import OutOfResources
    from zoomc.kernels.triton.gpu import detect
    from zoomc.kernels.triton.kernel import candidates, gathering_peaks
    from zoomc.kernels.triton.run import bind, evaluate
    from zoomc.targets.triton.build import Built, as_built, compile_choices

    gpu = detect()
    call = bind(op, *args, **kwargs)
    found = candidates(gathering_peaks(call) if gather else call, gpu)
    built: Built = {}
    compile_choices(found, gpu, built)  # all at once: one after the other they take minutes
    results = []
    for kernel in (as_built(kernel, built) for kernel in found):
        with contextlib.suppress(OutOfResources):
            results.append((kernel, evaluate(kernel, "cuda")))
    assert results, "no candidate fits this GPU"
    return results


def check(op: str, *args: Any, **kwargs: Any) -> None:
    expected = OPERATORS[op].reference(*map(wide, args), **{k: wide(v) for k, v in kwargs.items()})
    for kernel, got in kernels(op, *args, **kwargs):
        error = (got.double() - expected).norm() / expected.norm()
        assert error <= TOLERANCE[got.dtype], f"{dict(kernel.notes)}: {error:.2e}"


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("channels", [(64,), (320,), (9,), (64, 40)])
@pytest.mark.parametrize("extra", [{}, {"stride": [2, 2]}, {"upsample": True}], ids=str)
def test_conv2d(dtype, channels, extra):
    torch.manual_seed(0)
    inputs = [torch.randn(2, 16, 16, c).to(dtype) for c in channels]
    weight = (torch.randn(72, sum(channels), 3, 3) / (3 * sum(channels) ** 0.5)).to(dtype)
    check("zoomc::conv2d", inputs, weight, torch.randn(72).to(dtype), padding=SAME, **extra)
    groups = 1 if sum(channels) % 8 else 8
    norm = {"norm_groups": groups, "pre_activation": "silu", "shift": torch.randn(2, 72).to(dtype)}
    check("zoomc::conv2d", inputs, weight, padding=SAME, **norm, **extra)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("rows", "k", "n"), [(2, 1280, 320), (154, 1024, 640), (999, 320, 2560)])
def test_linear(dtype, rows, k, n):
    torch.manual_seed(0)
    x, weight = torch.randn(rows, k).to(dtype), (torch.randn(n, k) / k**0.5).to(dtype)
    check("zoomc::linear", x, weight, torch.randn(n).to(dtype), norm=True, activation="geglu")
    check("zoomc::linear", x, weight, residual=torch.randn(rows, n).to(dtype))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("dim", [32, 40, 64, 80, 128, 160, 512])
@pytest.mark.parametrize("keys", [77, 300])
def test_attention(dtype, dim, keys):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, n, 2 * dim).to(dtype) for n in (300, keys, keys))
    arguments = {"heads": 2, "head_dim": dim, "scale": dim**-0.5}
    check("zoomc::attention", q, k, v, **arguments)
    check("zoomc::attention", q, k, v, mask=torch.rand(300, keys) > 0.2, **arguments)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("dim", [32, 40, 64, 80, 128, 160])
@pytest.mark.parametrize("keys", [77, 300, 1024])
def test_integer_attention(dtype, dim, keys):
    """Fused operations round some codes to the neighbour of the reference's."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, n, 2 * dim).to(dtype) for n in (300, keys, keys))
    arguments = {"heads": 2, "head_dim": dim, "scale": dim**-0.5, "arithmetic": "int8"}
    expected = OPERATORS["zoomc::attention"].reference(q, k, v, **arguments).double()
    for kernel, got in kernels("zoomc::attention", q, k, v, **arguments):
        error = (got.double() - expected).norm() / expected.norm()
        assert error <= 1.5e-3 + TOLERANCE[dtype], f"{dict(kernel.notes)}: {error:.2e}"


def test_fp32_attention_in_bf16():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, n, 128) for n in (300, 77, 77))
    arguments = {"heads": 2, "head_dim": 64, "scale": 0.125, "arithmetic": "bf16"}
    expected = OPERATORS["zoomc::attention"].reference(q, k, v, **arguments).double()
    for kernel, got in kernels("zoomc::attention", q, k, v, **arguments):
        error = (got.double() - expected).norm() / expected.norm()
        assert error <= 3e-3, f"{dict(kernel.notes)}: {error:.2e}"


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("dim", [40, 64])
@pytest.mark.parametrize("arithmetic", ["keep", "int8"])
def test_attention_gathers_peaks_by_head(dtype, dim, arithmetic):
    from zoomc.kernels.triton.run import evaluate

    torch.manual_seed(0)
    q, k, v = (torch.randn(2, n, 3 * dim).to(dtype) for n in (300, 77, 77))
    q[1, 2, dim] = float("nan")  # of the second head
    arguments = {"heads": 3, "head_dim": dim, "scale": dim**-0.5, "arithmetic": arithmetic}
    for kernel, got in kernels("zoomc::attention", q, k, v, gather=True, **arguments):
        peaks, expected = evaluate(kernel, "cuda", "peaks"), kernel.extras["peaks"].of(got)
        assert peaks.isnan().nonzero().tolist() == [[302, 1]]
        assert torch.equal(peaks.nan_to_num(), expected.nan_to_num()), dict(kernel.notes)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_norms(dtype):
    torch.manual_seed(0)
    x = torch.randn(2, 33, 31, 96).to(dtype)
    check("zoomc::group_norm", x, 8, activation="silu")
    check("zoomc::layer_norm", x)


@pytest.mark.parametrize("bits", [0, 2, 4, 8])
def test_coded_sums_are_the_references(bits):
    """Powers of two as scales: then nothing but the integers' sums is left to differ."""
    weight, extra = coded((72, 200), bits)
    extra["channel_scale"] = torch.full((72,), 0.5)
    x = exact((130, 200), torch.float32)
    expected = OPERATORS["zoomc::linear"].reference(x, weight, **extra)
    for kernel, got in kernels("zoomc::linear", x, weight, **extra):
        assert torch.equal(got, expected), dict(kernel.notes)
    weight, extra = coded((72, 100, 3, 3), bits)
    extra["channel_scale"] = torch.full((72,), 0.5)
    inputs = [exact((2, 8, 8, 100), torch.float32)]
    expected = OPERATORS["zoomc::conv2d"].reference(inputs, weight, padding=SAME, **extra)
    for kernel, got in kernels("zoomc::conv2d", inputs, weight, padding=SAME, **extra):
        assert torch.equal(got, expected), dict(kernel.notes)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("bits", [0, 2, 4, 8])
def test_weight_only_products(dtype, bits):
    torch.manual_seed(0)
    x, (weight, extra) = torch.randn(130, 200).to(dtype), coded((72, 200), bits)
    extra["channel_scale"] /= 127 * 200**0.5
    check("zoomc::linear", x, weight, norm=True, weight_only=True, **extra)
    inputs = [torch.randn(2, 8, 8, c).to(dtype) for c in (64, 40)]
    weight, extra = coded((72, 104, 3, 3), bits)
    extra["channel_scale"] /= 127 * 936**0.5
    check("zoomc::conv2d", inputs, weight, padding=SAME, weight_only=True, **extra)


def test_weights_are_encoded_and_packed_where_they_lie():
    layer = torch.nn.Linear(256, 1024).cuda().half().requires_grad_(False)
    codes = torch.ops.zoomc.encode(layer.weight, "int4")
    assert all(part.is_cuda for part in codes)
    with torch.no_grad(), collect() as records:
        torch.compile(layer, backend="zoomc")(torch.randn(64, 256, device="cuda").half())
    tensors = [t for bound in records[0].executable._bound.values() for t in bound.values()]
    assert tensors and all(tensor.is_cuda for tensor in tensors)


def first(x: Any) -> torch.Tensor:
    return x if isinstance(x, torch.Tensor) else x[0]


def to_gpu(model: torch.nn.Module, args: tuple[torch.Tensor, ...], dtype: torch.dtype):
    moved = [a.cuda().to(dtype) if a.is_floating_point() else a.cuda() for a in args]
    return model.cuda().to(dtype), moved


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("make", [sd2_unet, vae_encoder, vae_decoder, clip_text])
def test_models(make, graph):
    model, args = make()
    with torch.no_grad(), collect() as records:
        expected = first(model(*args)).double()
        model, args = to_gpu(model, args, torch.float16)
        compiled = torch.compile(model, backend="zoomc", options={"cuda_graph": graph})
        for _ in range(2):
            actual = first(compiled(*args)).double().cpu()
            assert (actual - expected).norm() / expected.norm() < 2e-2
    assert records[0].executable.report["cuda_graph"] is graph


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_coded_models_stay_near(weights):
    model, args = sd2_unet()
    with torch.no_grad():
        expected = first(model(*args)).double()
        model, args = to_gpu(model, args, torch.float16)
        compiled = torch.compile(model, backend="zoomc", options={"weights": weights})
        actual = first(compiled(*args)).double().cpu()
    assert (actual - expected).norm() / expected.norm() < 0.3


def test_replays_follow_inputs_shapes_and_weights():
    model, args = to_gpu(*sd2_unet(), torch.float16)
    options = {"variants": 2}
    with torch.no_grad(), collect() as records:
        compiled = torch.compile(model, backend="zoomc", options=options, dynamic=False)

        def agrees(given) -> None:
            expected = first(model(*given)).float()
            assert (first(compiled(*given)).float() - expected).norm() / expected.norm() < 2e-2

        agrees(args)
        agrees([a * 0.5 if a.is_floating_point() else a for a in args])
        kept = first(compiled(*args))
        copy = kept.clone()
        agrees([torch.cat([a, a]) if a.dim() else a for a in args])
        agrees(args)
        assert torch.equal(kept, copy)
        assert len(records) == 2
        for parameter in model.parameters():
            parameter.mul_(1.01)
        agrees(args)
        assert len(records) == 2


def reserved() -> int:
    """Bytes of the GPU that torch holds and cannot give back."""
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()  # kept for every stream that ever multiplied
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved()


def test_memory_is_returned():
    before = reserved()
    model, args = to_gpu(*sd2_unet(), torch.float16)
    with torch.no_grad():
        torch.compile(model, backend="zoomc")(*args)
    del model, args
    torch._dynamo.reset()
    assert reserved() <= before + (4 << 20)


def test_calls_on_several_streams_do_not_mix():
    model, args = to_gpu(*sd2_unet(), torch.float16)
    given = [[a * k if a.is_floating_point() else a for a in args] for k in (1.0, 0.5)]
    with torch.no_grad():
        compiled = torch.compile(model, backend="zoomc")
        expected = [first(compiled(*inputs)).clone() for inputs in given]
        torch.cuda.synchronize()
        streams = [torch.cuda.Stream() for _ in given]
        results: list[tuple[int, torch.Tensor]] = []
        for _ in range(8):
            for i, stream in enumerate(streams):
                with torch.cuda.stream(stream):
                    results.append((i, first(compiled(*given[i]))))
        torch.cuda.synchronize()
    assert all(torch.equal(result, expected[i]) for i, result in results)


def test_a_callers_own_recording_takes_a_step_up():
    model, args = to_gpu(*sd2_unet(), torch.float16)
    with torch.no_grad():
        compiled = torch.compile(model, backend="zoomc")
        expected = first(compiled(*args)).clone()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            actual = first(compiled(*args))
        graph.replay()
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("weights", ["int8", "int4", "int4+2:4"])
def test_compressed_models_are_saved_from_a_gpu_and_loaded_onto_one(weights, tmp_path):
    model, args = to_gpu(*sd2_unet(), torch.float16)
    zoomc.compress(model, *args, weights=weights)
    assert all(tensor.is_cuda for tensor in (*model.parameters(), *model.buffers()))
    zoomc.save_compressed(model, tmp_path / "model.safetensors")
    other, _ = to_gpu(*sd2_unet(), torch.float16)
    zoomc.load_compressed(other, tmp_path / "model.safetensors").cuda()
    with torch.no_grad():
        expected = first(model(*args))
        torch.testing.assert_close(first(other(*args)), expected, rtol=1e-2, atol=1e-2)
        actual = first(torch.compile(other, backend="zoomc")(*args))
    assert (actual.float() - expected.float()).norm() / expected.float().norm() < 0.1


def test_the_gpu_counts_its_energy():
    from zoomc.targets.counters import counter, measure

    x = torch.randn(4096, 4096, device="cuda", dtype=torch.float16)

    def work():
        for _ in range(50):
            x @ x
        torch.cuda.synchronize()

    found = measure(work, counter("cuda"), 50 * 2 * 4096**3)
    assert 20 < found.watts < 2000
    assert found.source == "measured by NVML"
