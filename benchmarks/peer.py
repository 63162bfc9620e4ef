"""The built-in UNet under another compiler, in a process of its own; see quality.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

CHECKPOINT = Path(__file__).parents[1] / "zoomc" / "assets" / "demo" / "unet"


class Peer:
    """Called as the UNet is: hands the inputs to the process and brings back what it computed.

    Args:
        python: an interpreter that has the peer.
        name: of :data:`PEERS`.
        calls: inputs to compile for, and to calibrate with.
        folder: where tensors are exchanged.
    """

    def __init__(self, python: str, name: str, calls: Sequence[Any], folder: str) -> None:
        import torch

        self.name, self.folder = name, Path(folder)
        torch.save(list(calls), self.folder / "calls.pt")
        command = [python, __file__, name, folder, str(torch.get_num_threads())]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.ready = self._answer()

    def __call__(self, *inputs: Any) -> Any:
        """The output for one call's inputs."""
        import torch

        torch.save(inputs, self.folder / "in.pt")
        assert self._process.stdin
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        self._answer()
        return torch.load(self.folder / "out.pt")

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} stopped with exit code {self._process.wait()}")
        return json.loads(line)


def main() -> None:
    """Build, then run once per line on standard input."""
    name, folder, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    # Answers go to the real standard output; whatever libraries print goes to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(CHECKPOINT, torch_dtype=torch.float32)
    unet = unet.eval().requires_grad_(False)
    calls = torch.load(folder / "calls.pt")
    start = time.perf_counter()
    run, size, note = PEERS[name](unet, calls, threads)
    run(*calls[0])
    ready = {"compile": time.perf_counter() - start, "weight_bytes": size, "note": note}
    print(json.dumps(ready), file=answers, flush=True)
    for _ in sys.stdin:
        torch.save(run(*torch.load(folder / "in.pt")).float(), folder / "out.pt")
        print(json.dumps({}), file=answers, flush=True)


Built = tuple[Callable[..., Any], int, str]


def openvino(
    unet: Any, calls: Any, threads: int, compress: Callable[[Any], Any] = lambda model: model
) -> Built:
    """OpenVINO in fp32, but for what was compressed."""
    import openvino as ov
    import torch

    class Plain(torch.nn.Module):
        def forward(self, *x: Any) -> Any:
            return unet(*x, return_dict=False)[0]

    shapes = [tuple(x.shape) for x in calls[0]]
    converted = compress(ov.convert_model(Plain(), example_input=calls[0], input=shapes))
    with tempfile.TemporaryDirectory() as folder:
        ov.save_model(converted, Path(folder, "model.xml"), compress_to_fp16=False)
        size = Path(folder, "model.bin").stat().st_size
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    request = ov.Core().compile_model(converted, "CPU", settings).create_infer_request()

    def run(*x: Any) -> Any:
        return torch.from_numpy(request.infer([t.numpy() for t in x])[0].copy())

    return run, size, f"openvino {ov.__version__.split('-')[0]}"


def openvino_int8(unet: Any, calls: Any, threads: int) -> Built:
    """Weights and activations in 8 bits, calibrated on every step of a batch of pictures."""
    import nncf

    def compress(model: Any) -> Any:
        data = nncf.Dataset([[x.numpy() for x in call] for call in calls])
        return nncf.quantize(
            model, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(calls)
        )

    return openvino(unet, calls, threads, compress)


def openvino_int4(unet: Any, calls: Any, threads: int) -> Built:
    """Weights of linear layers in 4 bits, by groups of 32, of all others in 8."""
    import nncf

    def compress(model: Any) -> Any:
        mode = nncf.CompressWeightsMode.INT4_ASYM
        # Groups of 64 do not divide this model's 96 channels.
        return nncf.compress_weights(model, mode=mode, group_size=32, ratio=1.0, all_layers=True)

    return openvino(unet, calls, threads, compress)


def torchao_int4(unet: Any, calls: Any, threads: int) -> Built:
    """torchao's 4-bit weights of linear layers on a CPU (a prototype there); convolutions keep.

    All else is bf16: in fp32 its product is fifty times slower than torch's own.
    """
    import torch
    import torchao
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
    from torchao.quantization import quantize_

    unet = unet.to(torch.bfloat16)
    quantize_(unet, PrototypeInt4WeightOnlyConfig(group_size=32))

    def run(sample: Any, t: Any, text: Any) -> Any:
        return unet(sample.bfloat16(), t, text.bfloat16(), return_dict=False)[0]

    weights = list(unet.parameters())
    packed = [w for w in weights if hasattr(w, "qdata")]
    linears = sum(isinstance(m, torch.nn.Linear) for m in unet.modules())
    size = sum(
        w.qdata.nbytes + w.scale_and_zero.nbytes if hasattr(w, "qdata") else w.nbytes
        for w in weights
    )
    return run, size, f"torchao {torchao.__version__}, {len(packed)} of {linears} linear layers"


PEERS = {
    "openvino": openvino,
    "openvino_int8": openvino_int8,
    "openvino_int4": openvino_int4,
    "torchao_int4": torchao_int4,
}

if __name__ == "__main__":
    main()
