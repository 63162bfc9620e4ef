"""Every pass on every small model: the same numbers, and exactly the fusions that must happen."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from zoomc.passes import Context, Validator, run

from tests.models import MODELS
from tests.passes.util import assert_close, assert_meta_is_true, counts, model, outputs

#: What may remain besides zoomc's operators: timestep sines, token lookup, views.
LEFTOVERS = {
    "sd2_unet": {
        "aten._to_copy.default",
        "aten.mul.Tensor",
        "aten.sin.default",
        "aten.cos.default",
    },
    "clip_text": {
        "aten._to_copy.default",
        "aten.embedding.default",
        "aten.add.Tensor",
        "aten.eq.Scalar",
        "aten.argmax.default",
        "aten.index.Tensor",
    },
}
LEFTOVERS["sd15_unet"] = LEFTOVERS["sdxl_unet"] = LEFTOVERS["sd2_unet"]
VIEWS = {"aten.reshape.default", "aten.slice.Tensor", "aten.cat.default"}

#: zoomc operators left, by model. UNets: 8 resnets of 2 convolutions, 5 of them with a shortcut,
#: and 4 convolutions at the ends and between resolutions; for each of the 4 transformers, one
#: projection in and out (linear or convolution), and per layer 7 linears around 2 attentions, as
#: each attention's projections of one input are one; 2 linears for the time and 1 a resnet.
OPERATORS = {
    "sd2_unet": {"conv2d": 25, "group_norm": 4, "linear": 4 * 2 + 4 * 7 + 2 + 8, "attention": 8},
    "sd15_unet": {"conv2d": 33, "linear": 4 * 7 + 2 + 8, "attention": 8},
    "sdxl_unet": {"conv2d": 25, "group_norm": 4, "linear": 4 * 2 + 8 * 7 + 4 + 8, "attention": 16},
    "clip_text": {"linear": 8, "attention": 2, "layer_norm": 1},
    "vae_encoder": {"conv2d": 13, "group_norm": 1, "linear": 2, "attention": 1},
    "vae_decoder": {"conv2d": 17, "group_norm": 1, "linear": 2, "attention": 1},
}

#: Every attention here reads two or three projections of one input.
ATTENTIONS = (8, 8, 16, 2, 1, 1)

HITS = {
    "attention(linear(x, v), linear(x, w)) => attention(linear(x, cat([v, w])))": ATTENTIONS,
    "linear(layer_norm(x), w) => linear[norm](x, w)": (12, 12, 24, 4, 0, 0),
    "value(l) * gelu(gate(l)), l = linear(x) => linear[geglu](x)": (4, 4, 8, 0, 0, 0),
    "linear(activation(x), w) => linear[pre_activation](x, w)": (0, 0, 8, 0, 0, 0),
    "activation(linear(x)) => linear[activation](x)": (2, 2, 2, 2, 0, 0),
    "conv2d([group_norm(x)], w) => conv2d[norm]([x], w)": (17, 21, 17, 0, 9, 13),
    "conv2d([cat([x, y])], w) => conv2d([x, y], w)": (8, 8, 8, 0, 0, 0),
    "conv2d(x, w) + y[n, 1, 1, c] => conv2d[shift](x, w, y)": (8, 8, 8, 0, 0, 0),
    "conv2d(x, w) + y => conv2d[residual](x, w, y)": (8, 12, 8, 0, 4, 6),
    "conv2d([pad(x)], w) => conv2d[padding]([x], w)": (0, 0, 0, 0, 1, 0),
    "conv2d([nearest 2x upsample(x)], w) => conv2d[upsample]([x], w)": (1, 1, 1, 0, 0, 1),
}


@pytest.mark.parametrize("name", MODELS)
def test_numbers_and_fusions(name: str) -> None:
    gm, inputs = model(name)
    want = outputs(gm, inputs)
    trace = run(gm, Context(validate=Validator(inputs)))
    for record in trace.passes:
        assert record.error is not None and record.error < 1e-5, record.name
    gm.graph.lint()
    assert_meta_is_true(gm)
    assert_close(outputs(gm, inputs), want)

    column = list(MODELS).index(name)
    assert {rule: trace.hits(rule) for rule in HITS} == {r: n[column] for r, n in HITS.items()}

    left = counts(gm, constant=False)
    ours = {op.split(".")[1]: n for op, n in left.items() if op.startswith("zoomc")}
    assert ours == OPERATORS[name]
    others = {op for op in left if op.startswith("aten")} - VIEWS - {"aten.permute.default"}
    assert others == LEFTOVERS.get(name, set())
    images = sum(n.op == "placeholder" and n.meta["val"].ndim == 4 for n in gm.graph.nodes)
    images += sum(y.ndim == 4 for y in want)
    assert left["aten.permute.default"] == images


@pytest.mark.parametrize("name", MODELS)
def test_a_second_run_finds_nothing(name: str) -> None:
    gm, _ = model(name)
    run(gm)
    assert run(gm).rewrites == 0


@pytest.mark.parametrize("name", ["sdxl_unet", "clip_text", "vae_encoder"])
def test_batch_of_two(name: str) -> None:
    gm, inputs = model(name, batch=2)
    want = outputs(gm, inputs)
    run(gm)
    assert_meta_is_true(gm)
    assert_close(outputs(gm, inputs), want)
    ours = {op.split(".")[1]: n for op, n in counts(gm).items() if op.startswith("zoomc")}
    assert ours == OPERATORS[name]


def test_quick_gelu() -> None:
    from tests.models import clip_text
    from tests.passes.util import captured

    gm, inputs = captured(*clip_text(activation="quick_gelu"))
    want = outputs(gm, inputs)
    run(gm)
    assert_close(outputs(gm, inputs), want)
    activations = Counter(n.kwargs.get("activation") for n in gm.graph.nodes)
    assert activations["quick_gelu"] == 2


@pytest.mark.parametrize("name", ["sd2_unet", "clip_text", "vae_decoder"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    gm, inputs = model(name)
    want = outputs(gm, inputs)
    run(gm, Context(dtype=dtype))
    assert_meta_is_true(gm)
    got = outputs(gm, inputs)
    assert_close(got, want, tolerance=3e-2)
    assert any(not torch.equal(a, b) for a, b in zip(got, want, strict=True))
    for node in gm.graph.nodes:
        if str(node.target).startswith("zoomc"):
            assert node.meta["val"].dtype == dtype, node
        if str(node.target) in ("aten.sin.default", "aten.cos.default"):
            assert node.meta["val"].dtype == torch.float32
    ours = {op.split(".")[1]: n for op, n in counts(gm).items() if op.startswith("zoomc")}
    assert ours == OPERATORS[name]


def test_fuel_stops_after_n_rewrites_and_every_stop_is_right() -> None:
    gm, inputs = model("sd2_unet")
    want = outputs(gm, inputs)
    total = run(gm).rewrites
    final = counts(gm)
    for fuel in (0, 1, 200, 300, 340, total - 150, total - 60, total - 1, total, total + 1):
        gm, _ = model("sd2_unet")
        trace = run(gm, Context(fuel=fuel))
        assert trace.rewrites == min(fuel, total)
        assert_close(outputs(gm, inputs), want)
        assert (counts(gm) == final) == (fuel >= total)


def test_fuel_finds_the_wrong_rewrite() -> None:
    """Bisecting by fuel ends at the one rewrite that a broken rule made."""
    from zoomc.passes import PIPELINE, Pass
    from zoomc.passes.ops import aten
    from zoomc.passes.rewrite import call, rule

    @rule("gelu(x) => silu(x), wrongly", aten.gelu.default)
    def wrong(node):
        return call(aten.silu.default, node.args[0])

    pipeline = (*PIPELINE[:3], Pass("broken", (wrong,)), *PIPELINE[3:])
    gm, inputs = model("clip_text")
    want = outputs(gm, inputs)[0]

    def broken(fuel: int) -> bool:
        gm, _ = model("clip_text")
        run(gm, Context(fuel=fuel), pipeline)
        got = outputs(gm, inputs)[0]
        return ((got - want).norm() / want.norm()).item() > 1e-4

    low, high = 0, run(model("clip_text")[0], pipeline=pipeline).rewrites
    assert broken(high) and not broken(low)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if broken(middle) else (middle, high)
    before = run(model("clip_text")[0], Context(fuel=low), pipeline)
    after = run(model("clip_text")[0], Context(fuel=high), pipeline)
    assert after.hits(wrong.name) - before.hits(wrong.name) == 1


def test_dump_writes_a_graph_after_every_pass(tmp_path) -> None:
    gm, _ = model("clip_text")
    trace = run(gm, Context(dump=tmp_path / "graphs"))
    files = sorted(path.name for path in (tmp_path / "graphs").iterdir())
    assert len(files) == len(trace.passes) + 1
    assert (
        files[0].startswith("00_captured")
        and "scaled_dot" in (tmp_path / "graphs" / files[0]).read_text()
    )
    last = (tmp_path / "graphs" / files[-1]).read_text()
    assert "zoomc.attention" in last and "scaled_dot" not in last
