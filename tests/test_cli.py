"""The command line: quick to answer, clear about mistakes, and it makes the video."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import av
import pytest
import torch
from PIL import Image
from zoomc.targets.tuning import Store

from zoomc import cli
from zoomc.demo import SETTINGS
from zoomc.options import describe
from zoomc.tuning import Tuning

HEAVY = ("torch", "tvm", "diffusers", "transformers", "numpy", "PIL", "rich", "av")

FAST = ["--no-compile", "--steps", "1", "-k", "1", "--frames-per-keyframe", "2", "--upscale", "1"]


def run(capsys, *arguments):
    """Exit code, standard output and standard error of one command."""
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as leave:  # argparse leaves by itself after --help
        code = leave.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    "arguments", [["--help"], ["zoom", "--help"], ["options"], ["zoom", "--seed", "x"]]
)
def test_nothing_heavy_is_imported_to_answer(arguments):
    script = (
        "import sys; from zoomc import cli\n"
        "try: cli.main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        f"print('LOADED', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().endswith("LOADED []")


@pytest.mark.parametrize("command", ["zoom", "explain", "tune", "options"])
def test_help_covers_every_argument(capsys, command):
    assert run(capsys)[0] == 0
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    parser = cli.build_parser()._subparsers._group_actions[0].choices[command]
    for action in parser._actions:
        assert action.help, action.dest
        assert all(name in out for name in action.option_strings)


def test_every_example_in_the_help_parses():
    examples = (cli._EXAMPLES, cli._ZOOM_EXAMPLES, cli._EXPLAIN_EXAMPLES, cli.cli_tune.EXAMPLES)
    for text in examples:
        lines = re.findall(r"^  zoomc (.*)$", re.sub(r"\\\n +", "", text), re.MULTILINE)
        assert lines
        for line in lines:
            words = re.sub(r"   .*$", "", line).strip()
            arguments = [quoted or word for quoted, word in re.findall(r'"([^"]*)"|(\S+)', words)]
            assert cli.build_parser().parse_args(arguments).run


def test_options_are_all_listed(capsys):
    code, out, _ = run(capsys, "options")
    assert code == 0
    for name, _default, variable, help in describe():
        assert name in out and variable in out and help in out


def test_version(capsys):
    code, out, _ = run(capsys, "--version")
    assert code == 0 and re.fullmatch(r"zoomc \d+\.\d+\S*\n", out)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["zom"], "did you mean 'zoom'"),
        (["zoom", "--keyfram", "3"], "did you mean '--keyframes'"),
        (["zoom", "--direction", "ou"], "did you mean 'out'"),
        (["zoom", "--keyframes", "many"], "--keyframes"),
        (["zoom", "--keyframes", "0"], "keyframes is 0"),
        (["zoom", "--size", "big"], "write 512 or 768x512"),
        (["zoom", "--size", "65"], "latent cell"),
        (["zoom", "a.png", "b.png"], "one argument too many: 'b.png'"),
        (["zoom", "-O", "theads=2"], "did you mean 'threads'"),
        (["zoom", "-O", "threads"], "KEY=VALUE"),
        (["zoom", "-O", "isa=386"], "isa"),
        (["zoom", "missing.png"], "no file 'missing.png'"),
        (["zoom", "-o", "zoom.avi"], ".avi"),
        (["zoom", "--sheet", "sheet.jpg"], "does not end in .png"),
        (["zoom", "--sheet", "sheet.png", "--no-sheet"], "--no-sheet"),
        (["zoom", "--prompt-at", "x", "y"], "'x' is no number"),
        (["zoom", "--prompt-at", "99", "y"], "keyframe 99"),
        (["zoom", "--model", "no/such-model"], "hf download no/such-model"),
        (["zoom", "--scheduler", "ddimm"], "did you mean 'ddim'"),
        (["zoom", "--device", "gpu"], "gpu"),
        (["explain", "--part", "unett"], "did you mean 'unet'"),
        (["explain", "./nothing"], "no folder './nothing'"),
        (["explain", "--html", "no/such/folder.html"], "no/such/folder.html"),
    ],
)
def test_mistakes_are_one_clear_line(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *arguments)
    assert code == 2 and not out
    assert words in err
    lines = [line for line in err.splitlines() if line.startswith("zoomc: ")]
    assert len(lines) == 1 and "Traceback" not in err


def test_debugging_shows_where_an_error_comes_from(capsys, monkeypatch):
    monkeypatch.setenv("ZOOMC_DEBUG", "1")
    code, _, err = run(capsys, "zoom", "missing.png")
    assert code == 2 and "Traceback" in err and "PictureError" in err


def test_a_zoom_without_a_picture(capsys, tmp_path):
    output = tmp_path / "deep" / "zoom.mp4"
    code, out, err = run(capsys, "zoom", *FAST, "-o", output)
    assert code == 0
    assert f"{output}: 3 frames, 0.2 s" in out
    sheet = output.with_name("zoom.keyframes.png")
    assert f"{sheet}: its 2 keyframes" in out and sheet.is_file()
    assert "keyframe 1/1" in err
    with av.open(str(output)) as container:
        assert len(list(container.decode(video=0))) == 3


def test_the_built_in_model_zooms_as_suits_it(capsys, tmp_path):
    slow = [*FAST[:5], "--upscale", "1"]
    _, out, _ = run(capsys, "zoom", *slow, "-o", tmp_path / "z.gif")
    assert f"{SETTINGS.frames_per_keyframe + 1} frames" in out
    _, _, err = run(capsys, "zoom", *slow, "-o", tmp_path / "z.gif", "--shrink", "0.75")
    assert "window was [16, 16, 48, 48], now [8, 8, 56, 56]" in err


def test_random_weights_are_said(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("zoomc.demo.CHECKPOINT", tmp_path / "none")
    _, _, err = run(capsys, "zoom", *FAST, "-o", tmp_path / "z.gif")
    assert "random weights" in err


def test_a_zoom_from_a_picture(capsys, tmp_path):
    Image.linear_gradient("L").save(tmp_path / "photo.png")
    arguments = ["zoom", tmp_path / "photo.png", *FAST, "-p", "rock", "-o", tmp_path / "frames"]
    code, out, err = run(capsys, *arguments, "-q")
    assert (code, out, err) == (0, "", "")
    assert len(list((tmp_path / "frames").glob("*.png"))) == 3
    (tmp_path / "frames.keyframes.png").unlink()
    code, out, err = run(capsys, *arguments, "--no-sheet")
    assert code == 0 and "1 of 1 keyframes are kept" in err and "in one picture" not in out
    assert not (tmp_path / "frames.keyframes.png").exists()
    code, out, _ = run(capsys, *arguments, "--sheet", tmp_path / "sheet.png")
    assert code == 0 and (tmp_path / "sheet.png").is_file() and "sheet.png" in out
    code, _, err = run(capsys, *arguments, "--seed", "4")
    assert code == 2 and "seed was 0, now 4" in err and "--fresh" in err
    code, _, _ = run(capsys, *arguments, "--seed", "4", "--fresh")
    assert code == 0


def test_an_interrupt_says_how_to_go_on(capsys, tmp_path, monkeypatch):
    def interrupt(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("zoomc.zoom.infinite.InfiniteZoom.paint", interrupt)
    code, _, err = run(capsys, "zoom", *FAST, "-o", tmp_path / "z.mp4")
    assert code == 130 and "same command goes on" in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "default"),
        (["-p", "a"], "a"),
        (["-p", "a", "-p", "b"], ["a", "b"]),
        (["-p", "a", "--prompt-at", "3", "c"], {1: "a", 3: "c"}),
        (["--prompt-at", "2", "b"], {1: "default", 2: "b"}),
    ],
)
def test_prompts(arguments, expected):
    parsed = cli.build_parser().parse_args(["zoom", *arguments])
    assert cli._prompts(parsed, "default") == expected


def test_explain_hands_over_the_part_and_the_options(capsys, monkeypatch):
    seen = []

    def explain(model, *inputs, options=None, profile=False):
        assert not profile
        seen.append((type(model).__name__, [tuple(tensor.shape) for tensor in inputs], options))
        return "the report"

    monkeypatch.setattr("zoomc.report.explain", explain)
    code, out, _ = run(capsys, "explain", "--part", "vae", "-O", "threads=2")
    assert code == 0 and out.count("the report") == 2
    assert [name for name, *_ in seen] == ["Encoder", "Decoder"]
    assert seen[0][1] == [(1, 3, 64, 64)] and seen[1][1] == [(1, 4, 16, 16)]
    assert all(options == {"threads": "2"} for *_, options in seen)


TINY_UNET = {
    "_class_name": "UNet2DConditionModel",
    "in_channels": 9,
    "sample_size": 8,
    "block_out_channels": [8],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "mid_block_type": None,
    "norm_num_groups": 4,
    "cross_attention_dim": 16,
}


def test_tune_hands_over_the_model_of_a_config_and_its_limits(capsys, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(TINY_UNET))
    seen = []

    def tune(model, *inputs, reporter, **given):
        reporter.begin(3, 1)
        seen.append((next(model.parameters()).dtype, [tuple(x.shape) for x in inputs], given))
        return Tuning(Store(given["options"]["tuning"]), [])

    monkeypatch.setattr("zoomc.tuning.tune", tune)
    words = ["tune", tmp_path, "--dtype", "bfloat16", "--store", tmp_path / "s", "-O", "isa=avx2"]
    code, out, err = run(capsys, *words, "--candidates", "5", "--limit", "60")
    assert code == 0 and "unet\n" in out and f"kept in {tmp_path / 's'}" in out
    assert "1 of 3 kernels are known from before" in err
    options = {"isa": "avx2", "tuning": str(tmp_path / "s"), "target": "cpu"}
    given = {"options": options, "device": None, "candidates": 5, "seconds": 60.0}
    assert seen == [(torch.bfloat16, [(2, 9, 8, 8), (), (2, 77, 16)], given)]

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("zoomc.tuning.tune", interrupted)
    code, out, err = run(capsys, *words, "-q")
    assert code == 130 and "the same command goes on" in out and not err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--tracker", "127.0.0.1:9190"], "--tracker and --key go together"),
        (["--candidates", "1"], "at least 2"),
        (["-O", "tuning=off"], "--store"),
        (["--tracker", "nowhere", "--key", "x"], "write host:port"),
        (["CONFIG"], "no UNet's: it is of a Bert"),
    ],
)
def test_tune_says_what_is_wrong(capsys, tmp_path, arguments, told):
    (tmp_path / "config.json").write_text('{"_class_name": "Bert"}')
    words = [tmp_path if word == "CONFIG" else word for word in arguments]
    code, _, err = run(capsys, "tune", *words)
    assert code == 2 and told in err and err.count("\n") == 1
