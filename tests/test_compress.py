"""Compressed models: the same numbers as coded ones, less memory, files that say what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from zoomc.kernels.weights import Encoding, prune
from zoomc.kernels.weights.coded import stored_bits
from zoomc.kernels.weights.encoding import EncodingError
from zoomc.passes import run
from zoomc.targets.pages import page_out

import zoomc
from tests.models import MODELS
from tests.passes.util import captured, outputs
from zoomc.compressed import MASK, PARTS, Coded, CodedConv2d, CodedLinear
from zoomc.errors import CompressedFileError
from zoomc.record import collect


def error(got, want) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


class Net(nn.Module):
    """Convolutions, then tokens with projections that read one input, then a linear by rows."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(8, 32, 3, padding=1)
        self.middle = nn.Conv2d(32, 64, 3, padding=1)
        self.last = nn.Conv2d(64, 32, 1)
        self.q = nn.Linear(32, 64)
        self.k = nn.Linear(32, 64)
        self.v = nn.Linear(32, 64, bias=False)
        self.time = nn.Linear(48, 32)
        self.tiny = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(64)
        self.register_buffer("offset", torch.ones(64), persistent=False)

    def forward(self, x, t):
        x = self.last(self.middle(self.first(x)).relu()) + self.time(t)[:, :, None, None]
        x = x.flatten(2).transpose(1, 2)
        q, k, v = (p(x).unflatten(-1, (4, 16)).transpose(1, 2) for p in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.norm(y + self.offset)


def net(seed: int = 0):
    torch.manual_seed(seed)
    model = Net().eval().requires_grad_(False)
    return model, (torch.randn(2, 8, 8, 8), torch.randn(2, 48))


def test_example_inputs_choose_the_codes():
    lost = {}
    for calibrate in (False, True):
        model, inputs = net()
        want = model(*inputs)
        zoomc.compress(model, *inputs, weights="shared:4", calibrate=calibrate)
        lost[calibrate] = error(model(*inputs), want)
    assert lost[True] < 0.95 * lost[False]


def meta() -> Net:
    with torch.device("meta"):
        return Net().eval()


def stored_bytes(model: nn.Module) -> int:
    return sum(t.nbytes for t in (*model.parameters(), *model.buffers()))


def test_layers_hold_codes_and_nothing_else():
    model, inputs = net()
    before, want = stored_bytes(model), model(*inputs)
    shapes = {name: m.weight.shape for name, m in model.named_modules() if hasattr(m, "weight")}
    assert zoomc.compress(model, *inputs, weights="int4") is model
    assert isinstance(model.middle, CodedConv2d) and isinstance(model.q, CodedLinear)
    assert type(model.tiny) is nn.Linear
    for name, module in model.named_modules():
        if hasattr(module, "weight"):
            assert module.weight.shape == shapes[name]
    bits = {n: 8 * m.weight_codes.numel() / m.weight.numel() for n, m in model.named_modules()
            if isinstance(m, CodedConv2d | CodedLinear)}  # fmt: skip
    assert bits == {"first": 8, "middle": 4, "last": 8, "q": 4, "k": 4, "v": 4, "time": 8}
    assert stored_bytes(model) < 0.25 * before
    assert 1e-3 < error(model(*inputs), want) < 0.2


@pytest.mark.parametrize(
    "weights", ["int8", "int4", "shared", "shared:256", "int4+2:4", "int4+blocks50%"]
)
def test_compiled_it_computes_with_its_own_codes(weights):
    model, inputs = net()
    if weights == "shared":  # for weights spread evenly, evenly spaced values are the best
        for layer in model.modules():
            if isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)):
                torch.nn.init.normal_(layer.weight, std=float(layer.weight.std()))
    zoomc.compress(model, *inputs, weights=weights)
    want = model(*inputs)
    with collect() as records:
        got = torch.compile(model, backend="zoomc", options={"fallback": "error"})(*inputs)
    # what differs is the rounding of activations to int8
    assert error(got, want) < 0.03
    layers = records[0].trace.layers
    assert {layer.encoding for layer in layers} == {"int8", weights}
    assert len(layers) == 5  # queries, keys and values are one
    assert records[0].trace.hits(f"linear(x, w) => linear(x, {weights} of w)") >= 1


def test_a_budget_and_another_type_leave_stored_codes_alone():
    model, inputs = net()
    zoomc.compress(model, *inputs)
    want = model(*inputs)
    for options in ({"weights": "int8", "max_error": 0.5}, {"dtype": "bf16"}):
        torch._dynamo.reset()
        with collect() as records:
            got = torch.compile(model, backend="zoomc", options=options)(*inputs)
        assert error(got, want) < 0.05
        encodings = [layer.encoding for layer in records[0].trace.layers]
        assert encodings.count("int4") == 2


def test_saved_and_loaded_without_the_original(tmp_path):
    model, inputs = net()
    zoomc.compress(model, *inputs, weights="shared")
    zoomc.save_compressed(model, tmp_path / "net.safetensors")
    loaded = zoomc.load_compressed(meta(), tmp_path / "net.safetensors")
    assert torch.equal(loaded(*inputs), model(*inputs))
    assert "offset" not in loaded.state_dict()
    for tensor in (*loaded.parameters(), *loaded.buffers()):
        assert not tensor.is_meta and not tensor.requires_grad
    again = zoomc.load_compressed(net(1)[0], tmp_path / "net.safetensors")
    assert torch.equal(again(*inputs), model(*inputs))
    zoomc.save_compressed(again, tmp_path / "again.safetensors")
    a, b = ((tmp_path / f"{n}.safetensors").stat().st_size for n in ("net", "again"))
    assert a == b < 0.4 * stored_bytes(net()[0])


@pytest.mark.parametrize(
    "spelling",
    ["int4+2:4", "int8+75%", "shared:4+50%", "int4+blocks50%", "keep+2:4", "keep+blocks50%"],
)
def test_pruned_layers_hold_what_is_kept(spelling, tmp_path):
    encoding = Encoding.parse(spelling)
    model, inputs = net()
    pruned = {n: prune(getattr(model, n).weight, encoding.pruning) for n in ("middle", "q")}
    zoomc.compress(model, *inputs, weights=spelling)
    for name, weight in pruned.items():
        layer = getattr(model, name)
        held = sum(getattr(layer, part).nbytes for part in (*PARTS, MASK))
        assert held == -(-stored_bits(tuple(weight.shape), encoding) // 8)
        assert not layer.weight[weight == 0].any()
        assert error(layer.weight, weight) < 0.4
    path = tmp_path / "net.safetensors"
    zoomc.save_compressed(model, path)
    other = "keep+30%" if encoding.kind == "keep" else "int4+30%"
    for target in (meta(), net(1)[0], zoomc.compress(net(1)[0], *inputs, weights=other)):
        loaded = zoomc.load_compressed(target, path)
        assert torch.equal(loaded(*inputs), model(*inputs))
    # a model whose layers were pruned takes a file of some that were not
    dense = zoomc.compress(net(1)[0], weights="int4")
    zoomc.save_compressed(dense, path)
    again = zoomc.load_compressed(loaded, path)
    assert torch.equal(again(*inputs), dense(*inputs)) and not hasattr(again.q, MASK)


@pytest.mark.parametrize("kind", ["int4", "keep"])
def test_files_of_pruned_layers_that_do_not_fit_say_so(kind, tmp_path):
    path = tmp_path / "net.safetensors"
    zoomc.save_compressed(zoomc.compress(net()[0], weights=f"{kind}+50%"), path)
    whole, spelling, other = path.read_bytes(), f"{kind}+50%", "keep" if kind == "int4" else "int8"
    for content in (whole[:-50], *(whole.replace(spelling.encode(), wrong.encode())
                    for wrong in (f"{kind}+40%", f"{kind}_50%", f"{other}+50%"))):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(CompressedFileError, match="damaged"):
            zoomc.load_compressed(meta(), path)


def test_half_precision_comes_back_in_its_type(tmp_path):
    model, inputs = net()
    model, inputs = model.bfloat16(), [x.bfloat16() for x in inputs]
    zoomc.compress(model, *inputs)
    assert model.middle.weight.dtype is torch.bfloat16
    zoomc.save_compressed(model, tmp_path / "net.safetensors")
    loaded = zoomc.load_compressed(meta(), tmp_path / "net.safetensors")
    assert torch.equal(loaded(*inputs), model(*inputs))


@pytest.mark.parametrize("weights", ["keep+2:4", "keep+75%", "keep+blocks50%"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_only_pruned_are_kept_as_numbers(weights, dtype, tmp_path, monkeypatch):
    monkeypatch.delenv("ZOOMC_WEIGHTS")
    model, inputs = net()
    model, inputs = model.to(dtype), [x.to(dtype) for x in inputs]
    pruning = Encoding.parse(weights).pruning
    pruned = {n: prune(getattr(model, n).weight, pruning) for n in ("middle", "q", "k", "v")}
    zoomc.compress(model, *inputs, weights=weights)
    assert {n for n, m in model.named_modules() if isinstance(m, Coded)} == {*pruned}
    for name, weight in pruned.items():
        assert torch.equal(getattr(model, name).weight, weight)
        assert getattr(model.to(torch.float64), name).weight.dtype is torch.float64
        model.to(dtype)
    want = model(*inputs)
    path = tmp_path / "net.safetensors"
    zoomc.save_compressed(model, path)
    loaded = zoomc.load_compressed(meta(), path)
    options = {"fallback": "error", "attention": "keep"}
    with collect() as records:
        got = torch.compile(loaded, backend="zoomc", options=options)(*inputs)
    assert error(got, want) < (1e-5 if dtype is torch.float32 else 0.01)
    assert {layer.encoding for layer in records[0].trace.layers} == {weights}
    if "blocks" in weights:  # the CPU's kernels leave blocks out
        nodes = [n for n in records[0].graph.graph.nodes if n.kwargs.get("kept_steps")]
        assert nodes


def test_casting_a_compressed_model_leaves_its_scales():
    model, _ = net()
    zoomc.compress(model)
    before = model.middle.weight
    assert torch.equal(model.half().middle.weight, before)


def test_changed_codes_are_noticed():
    model, inputs = net()
    zoomc.compress(model, *inputs)
    fast = torch.compile(model, backend="zoomc")
    before = fast(*inputs)
    codes = model.middle.weight_codes
    codes.copy_(codes.flip(0))
    assert error(fast(*inputs), model(*inputs)) < 0.03 < error(before, model(*inputs))


def test_encodings_by_name():
    model, _ = net()
    zoomc.compress(model, weights={"middle.weight": "int8", "q": "shared:4"})
    coded = {n for n, m in model.named_modules() if isinstance(m, CodedConv2d | CodedLinear)}
    assert coded == {"middle", "q"}
    assert model.middle.weight_table.numel() == 0 and model.q.weight_table.numel() == 4
    with pytest.raises(EncodingError):
        zoomc.compress(net()[0], weights="int3")


def test_damaged_files_say_so(tmp_path):
    model, _ = net()
    zoomc.compress(model)
    path = tmp_path / "net.safetensors"
    zoomc.save_compressed(model, path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-100] ^= 4
    for content, message in (
        (whole[:-50], "damaged or truncated"),
        (whole[:40], "damaged or truncated"),
        (b"", "damaged or truncated"),
        (bytes(flipped), "damaged"),
    ):
        path.write_bytes(content)
        target = meta()
        with pytest.raises(CompressedFileError, match=message):
            zoomc.load_compressed(target, path)
        assert type(target.middle) is nn.Conv2d
    with pytest.raises(CompressedFileError, match="does not exist"):
        zoomc.load_compressed(meta(), tmp_path / "nothing.safetensors")
    save_file({"weight": torch.ones(3)}, path)
    with pytest.raises(CompressedFileError, match="no compressed model"):
        zoomc.load_compressed(meta(), path)


def test_a_file_that_cannot_be_written_says_so(tmp_path):
    with pytest.raises(CompressedFileError, match="cannot write"):
        zoomc.save_compressed(nn.Linear(3, 3), tmp_path / "no folder" / "net.safetensors")


def test_another_models_file_says_so(tmp_path):
    model, _ = net()
    zoomc.compress(model)
    path = tmp_path / "net.safetensors"
    zoomc.save_compressed(model, path)
    other = meta()
    other.middle = nn.Conv2d(32, 65, 3, device="meta")
    with pytest.raises(CompressedFileError, match=r"a layer 'middle' with a weight of shape \(64"):
        zoomc.load_compressed(other, path)
    other = meta()
    other.extra = nn.Linear(2, 2, device="meta")
    with pytest.raises(CompressedFileError, match=r"only the model has 'extra.bias'"):
        zoomc.load_compressed(other, path)
    other = meta()
    other.norm = nn.LayerNorm(63, device="meta")
    with pytest.raises(CompressedFileError, match=r"'norm.bias' is \(64,\) there and \(63,\) here"):
        zoomc.load_compressed(other, path)


def test_a_whole_unet(tmp_path):
    model, inputs = MODELS["sd2_unet"]()
    zoomc.compress(model, *inputs)
    zoomc.save_compressed(model, tmp_path / "unet.safetensors")
    want = model(*inputs)
    model = zoomc.load_compressed(MODELS["sd2_unet"]()[0], tmp_path / "unet.safetensors")
    assert torch.equal(model(*inputs), want)
    gm, inputs = captured(model, inputs)
    layers = run(gm).layers
    encodings = [layer.encoding for layer in layers]
    assert encodings.count("int4") == 59 and encodings.count("int8") == 12
    assert error(outputs(gm, inputs)[0], want) < 0.1  # what int8 activations add


def resident(path) -> int:
    """Bytes of a mapped file that this process has in memory."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            inside = line.rstrip().endswith(str(path))
        elif inside and line.startswith("Rss:"):
            total += 1024 * int(line.split()[1])
    return total


def test_only_the_packed_copy_stays_in_memory(tmp_path):
    def sizable() -> nn.Module:
        return nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(4))).eval()

    if not page_out(torch.empty(1 << 16)):
        pytest.skip("the system cannot be told to drop pages")
    path, x = tmp_path / "net.safetensors", torch.randn(20, 1024)
    zoomc.save_compressed(zoomc.compress(sizable(), weights="int4"), path)
    with torch.device("meta"):
        model = sizable()
    zoomc.load_compressed(model, path)
    assert resident(path) < 0.2 * path.stat().st_size
    want = model(x)
    assert resident(path) > 0.8 * path.stat().st_size
    fast = torch.compile(model, backend="zoomc", options={"fallback": "error"})
    assert error(fast(x), want) < 0.03
    fast(x)
    assert resident(path) < 0.2 * path.stat().st_size
    assert torch.equal(model(x), want)


def test_what_compression_kept_stays_kept(monkeypatch):
    """By default the compiler makes 4-bit codes, but not of a model that stores codes already."""
    monkeypatch.delenv("ZOOMC_WEIGHTS")
    model, inputs = net()
    zoomc.compress(model, weights={"middle": "int8"})
    want = model(*inputs)
    with collect() as records:
        got = torch.compile(model, backend="zoomc")(*inputs)
    assert [layer.encoding for layer in records[0].trace.layers] == ["int8"]
    assert (got - want).norm() < 0.02 * want.norm()
