"""The backend as users meet it: the string, options, changed weights, shapes, bad input."""

from __future__ import annotations

import gc
import multiprocessing
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import zoomc
from zoomc import watch
from zoomc.record import collect

STRICT = {"fallback": "error"}


class Small(nn.Module):
    """A convolution, a norm and a linear layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.linear = nn.Linear(8, 5)

    def forward(self, x):
        return self.linear(nn.functional.silu(self.norm(self.conv(x))).mean((2, 3)))


@pytest.fixture
def model():
    return Small().eval().requires_grad_(False)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_the_string_works_without_importing_zoomc():
    code = (
        "import sys, torch\n"
        "model = torch.nn.Linear(4, 4).requires_grad_(False)\n"
        "assert 'zoomc' not in sys.modules\n"
        "x = torch.ones(2, 4)\n"
        "y = torch.compile(model, backend='zoomc', options={'fallback': 'error'})(x)\n"
        "torch.testing.assert_close(y, model(x))\n"
        "assert 'zoomc' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_same_numbers_as_eager(model):
    x = torch.randn(2, 3, 9, 7)
    close(torch.compile(model, backend="zoomc", options=STRICT)(x), model(x))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"options": {"wieghts": "keep"}}, "did you mean 'weights'"),
        ({"options": {"dtype": "int"}}, "'bf16'"),
        ({"mode": "max-autotune"}, "'reduce-overhead'"),
        ({"options": {"isa": "sse4"}}, "'portable'"),
    ],
)
def test_wrong_arguments_say_what_to_do(model, keywords, message):
    with pytest.raises(Exception, match=message):
        torch.compile(model, backend="zoomc", **keywords)(torch.randn(1, 3, 4, 4))


def test_gradients_are_refused(model):
    model.requires_grad_(True)
    with pytest.raises(Exception, match="no_grad"):
        torch.compile(model, backend="zoomc")(torch.randn(1, 3, 4, 4))
    with torch.no_grad():
        x = torch.randn(1, 3, 4, 4)
        close(torch.compile(model, backend="zoomc")(x), model(x))


def test_every_kind_of_weight_change_is_noticed(model):
    compiled = torch.compile(model, backend="zoomc", options=STRICT)
    x = torch.randn(2, 3, 6, 6)
    compiled(x)
    with torch.no_grad():
        model.conv.weight.mul_(2)
    close(compiled(x), model(x))
    model.load_state_dict({k: v * 1.5 for k, v in model.state_dict().items()})
    close(compiled(x), model(x))
    model.linear.weight = nn.Parameter(torch.randn(5, 8), requires_grad=False)
    close(compiled(x), model(x))
    model.linear.weight.data += torch.randn(5, 8)  # as fusing a LoRA does
    close(compiled(x), model(x))
    model.norm.weight.data = torch.randn(8)
    close(compiled(x), model(x))


def test_refresh_packs_again_what_no_check_can_see(model, monkeypatch):
    monkeypatch.setattr(watch, "SMALL", 0)
    compiled = torch.compile(model, backend="zoomc", options=STRICT)
    x = torch.randn(2, 3, 6, 6)
    compiled(x)
    model.conv.weight.data.view(-1)[5] += 10  # between the samples
    zoomc.refresh(model)
    close(compiled(x), model(x))


def test_changed_weights_need_no_recompilation(model):
    compiled = torch.compile(model, backend="zoomc", options=STRICT)
    x = torch.randn(2, 3, 6, 6)
    with collect() as records:
        compiled(x)
        with torch.no_grad():
            model.conv.weight.mul_(2)
        close(compiled(x), model(x))
    assert len(records) == 1


def test_models_in_one_graph_keep_their_weights_apart():
    one, two = (nn.Linear(64, 64).eval().requires_grad_(False) for _ in range(2))
    x = torch.randn(4, 64)

    def both(a, b, x):
        return a(x) + 2 * b(x)

    compiled = torch.compile(both, backend="zoomc", options=STRICT)
    torch.testing.assert_close(compiled(one, two, x), both(one, two, x))
    torch.testing.assert_close(compiled(two, one, x), both(two, one, x))


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-5), ("bf16", 3e-2)])
def test_graphs_of_one_model_share_packed_weights(dtype, tolerance):
    model = nn.Linear(96, 80).eval().requires_grad_(False)
    inputs = [torch.randn(rows, 96) for rows in (3, 5, 7)]

    def check(x):
        torch.testing.assert_close(compiled(x), model(x), rtol=tolerance, atol=tolerance)

    with collect() as records:
        compiled = torch.compile(model, backend="zoomc", options=STRICT | {"dtype": dtype})
        for x in inputs[:2]:
            check(x)
        first, second = (record.executable for record in records)
        assert first._constants is not second._constants  # Dynamo made two graphs
        shared = {t.data_ptr() for bound in first._bound.values() for t in bound}
        assert shared == {t.data_ptr() for bound in second._bound.values() for t in bound}
        with torch.no_grad():
            model.weight.mul_(-2)
        for x in [*inputs[::-1], *inputs]:  # whichever graph notices first
            check(x)


def test_a_graph_made_after_weights_changed_shares_nothing():
    model = nn.Linear(96, 80).eval().requires_grad_(False)
    compiled = torch.compile(model, backend="zoomc", options=STRICT)
    few, more = torch.randn(3, 96), torch.randn(5, 96)
    compiled(few)
    with torch.no_grad():
        model.weight.mul_(-2)
    torch.testing.assert_close(compiled(more), model(more))
    torch.testing.assert_close(compiled(few), model(few))


def test_shapes_make_variants_and_old_ones_are_dropped(model):
    compiled = torch.compile(model, backend="zoomc", dynamic=True, options=STRICT | {"variants": 2})
    with collect() as records:
        for size in (4, 5, 6, 5, 6, 4):
            x = torch.randn(1, 3, size, size)
            close(compiled(x), model(x))
    assert len(records) == 4  # 4, 5, 6, and 4 again after it was dropped
    executables = [weakref.ref(record.executable) for record in records]
    records.clear()
    gc.collect()
    assert sum(ref() is not None for ref in executables) == 2


def test_batches_recompile_only_new_kernels(model):
    from zoomc.targets.tvm import library

    compiled = torch.compile(model, backend="zoomc", dynamic=True, options=STRICT)
    compiled(torch.randn(2, 3, 8, 8))
    before = len(library._CACHE)
    again = torch.compile(Small().eval().requires_grad_(False), backend="zoomc", options=STRICT)
    again(torch.randn(2, 3, 8, 8))
    assert len(library._CACHE) == before


def test_inputs_of_any_layout(model):
    compiled = torch.compile(model, backend="zoomc", options=STRICT)
    x = torch.randn(2, 8, 7, 6)
    for view in (x[:, :3], x[:, 1:7:2], x[:, :3].transpose(2, 3).contiguous().transpose(2, 3)):
        close(compiled(view), model(view))
    misaligned = torch.randn(1 + 2 * 3 * 8 * 8)[1:].view(2, 3, 8, 8)
    close(compiled(misaligned), model(misaligned))


def test_results_do_not_share_memory_with_inputs():
    compiled = torch.compile(lambda x: (x.clone(), x.reshape(-1) + 0), backend="zoomc")
    x = torch.ones(4, 4)
    first, second = compiled(x)
    first.zero_()
    second.zero_()
    assert x.eq(1).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_values_propagate(model, bad):
    x = torch.randn(2, 3, 6, 6)
    x[0, 1, 2, 3] = bad
    actual = torch.compile(model, backend="zoomc", options=STRICT)(x)
    assert torch.equal(actual.isfinite(), model(x).isfinite())
    close(actual[1], model(x)[1])


def test_zero_size_input_is_right(model):
    x = torch.randn(0, 3, 6, 6)
    assert torch.compile(model, backend="zoomc")(x).shape == model(x).shape


def test_wrong_dtype_mix_fails_as_in_eager(model):
    with pytest.raises(Exception, match=r"(?i)dtype|type"):
        torch.compile(model, backend="zoomc")(torch.randn(1, 3, 4, 4).double())


def test_model_elsewhere_is_named(model):
    model.to("meta")
    with pytest.raises(Exception, match="meta"):
        compiled = torch.compile(model, backend="zoomc", options={"target": "cpu"})
        compiled(torch.randn(1, 3, 4, 4, device="meta"))


def test_threads_take_turns_and_agree(model):
    # The first call of each shape belongs on one thread: while torch exports, nn.Module is patched
    # for the whole process, and any other thread's call fails.
    compiled = torch.compile(model, backend="zoomc", options=STRICT)
    inputs = [torch.randn(2, 3, 16, 16) for _ in range(4)]

    def work(x):
        with torch.no_grad():
            for _ in range(20):
                close(compiled(x), model(x))

    work(inputs[0])
    with ThreadPoolExecutor(len(inputs)) as pool:
        list(pool.map(work, inputs))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_fork_after_compilation(model):
    x = torch.randn(2, 3, 16, 16)
    compiled = torch.compile(model, backend="zoomc", options=STRICT)
    expected = compiled(x)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    def child():
        queue.put(compiled(x).tolist())

    process = context.Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == 0, "the forked child did not finish"
    close(torch.tensor(queue.get()), expected)
    close(compiled(x), expected)


def test_what_cannot_be_lowered_runs_in_eager_with_a_reason():
    def model(x):
        return torch.linalg.qr(x * 2)[0] + torch.sort(x)[0]

    x = torch.randn(5, 5)
    with collect() as (records):
        close(torch.compile(model, backend="zoomc")(x), model(x))
    reasons = {f["operator"]: f["reason"] for f in records[0].fallbacks}
    assert any("linalg_qr" in name for name in reasons)
    assert all(reasons.values())
    with pytest.raises(Exception, match='"fallback": "eager"'):
        torch.compile(model, backend="zoomc", options=STRICT)(x + 1)


def test_missing_tvm_says_what_to_install():
    code = (
        "import sys, torch\n"
        "sys.modules['tvm'] = None\n"
        "model = torch.nn.Linear(4, 4).requires_grad_(False)\n"
        "try: torch.compile(model, backend='zoomc')(torch.ones(2, 4))\n"
        "except Exception as error: assert 'pip install apache-tvm' in str(error), error\n"
        "else: raise SystemExit('no error')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_dtype_option_computes_in_another_type(model):
    x = torch.randn(2, 3, 8, 8)
    for dtype, tolerance in (("bf16", 3e-2), ("fp16", 1e-4), ("fp32", 1e-4)):
        torch._dynamo.reset()
        actual = torch.compile(model, backend="zoomc", options=STRICT | {"dtype": dtype})(x)
        assert actual.dtype is torch.float32
        torch.testing.assert_close(actual, model(x), rtol=tolerance, atol=tolerance)


def test_half_models_run(model):
    model.half()
    x = torch.randn(2, 3, 8, 8).half()
    actual = torch.compile(model, backend="zoomc", options=STRICT)(x)
    assert actual.dtype is torch.float16
    torch.testing.assert_close(actual, model(x), rtol=1e-2, atol=1e-2)


def test_importing_zoomc_is_light():
    code = "import sys, zoomc; sys.exit(bool({'torch', 'tvm', 'diffusers'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)
