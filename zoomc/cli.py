"""The command line. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from . import cli_tune
from .errors import ZoomcError, nearest
from .kernels.errors import first_line
from .zoom.settings import DEFAULT_GUIDANCE, DIRECTIONS, Prompts, ZoomSettings

_EXAMPLES = """examples:
  zoomc zoom                                    the built-in picture and model, to out/zoom.mp4
  zoomc zoom photo.jpg --model path/to/stable-diffusion-2-inpainting \\
      --prompt "a hillside village, oil painting" -o zoom.mp4
  zoomc options                                 every option of the compiler
  zoomc explain --part unet                     what the compiler does with a model

Run "zoomc COMMAND --help" for all a command takes. ZOOMC_DEBUG=1 shows where an error comes from.
"""

_ZOOM_EXAMPLES = """examples:
  zoomc zoom -o out/zoom.mp4
  zoomc zoom photo.jpg --prompt "a forest" --prompt-at 4 "a city" --keyframes 8 -o zoom.mp4
  zoomc zoom photo.jpg --scheduler dpm++ --steps 20 --direction in -o zoom.gif
  zoomc zoom photo.jpg --size 768x512 --shrink 0.5 --feather 0 -o frames
  zoomc zoom photo.jpg --no-compile             plain PyTorch, to compare

An interrupted zoom (Ctrl-C) goes on where it was when the same command runs again: keyframes are
kept beside the output, in NAME.keyframes. More keyframes, another direction, speed or file format
use the kept ones as well; any other change asks for --fresh.
"""

_EXPLAIN_EXAMPLES = """examples:
  zoomc explain                                 the built-in model's UNet
  zoomc explain path/to/pipeline --part vae -O isa=avx2
  zoomc explain --html report.html -O target=npu -O weights=int4
"""

_PART_CHOICES = ("unet", "text_encoder", "vae_encoder", "vae_decoder", "vae", "all")


_MODEL_HELP = (
    "folder or cached hub name of an inpainting pipeline, or folder with a diffusers UNet's"
    " config.json, whose weights are then random (default: the built-in pipeline)"
)


class _Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line that suggests what was meant."""

    def error(self, message: str) -> Any:
        raise ZoomcError(f"{message} (see {self.prog} --help)")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            raise argparse.ArgumentError(action, f"there is no {value!r}{nearest(value, known)}")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        known, rest = self.parse_known_args(args, namespace)
        if rest:
            parser = getattr(known, "parser", self)
            unknown = next((word for word in rest if word.startswith("-")), rest[0])
            if not unknown.startswith("-"):
                parser.error(f"one argument too many: {unknown!r}")
            options = [name for action in parser._actions for name in action.option_strings]
            name = unknown.split("=")[0]
            parser.error(f"there is no option {name}{nearest(name, options)}")
        return known


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = _Parser(
        prog="zoomc",
        description="A torch.compile backend for Stable Diffusion inpainting, and the infinite "
        "zoom on top of it.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version and leave")
    commands = parser.add_subparsers(metavar="COMMAND", parser_class=_Parser)
    _add_zoom(commands)
    _add_explain(commands)
    _add_tune(commands)
    _add_options(commands)
    return parser


def _add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], help: str, epilog: str = ""
) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.set_defaults(run=run, parser=command)
    return command


def _add_model(group: Any) -> None:
    group.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="type the weights are loaded in (default: float32)",
    )
    group.add_argument("--device", help="where to run: cpu, cuda, cuda:1 (default: cpu)")
    group.add_argument(
        "-O",
        dest="options",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help='option of the compiler, repeatable; "zoomc options" lists them',
    )


def _add_part(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--part",
        choices=_PART_CHOICES,
        default="unet",
        help="which model of the pipeline (default: unet)",
    )


def _add_zoom(commands: Any) -> None:
    defaults = ZoomSettings()
    command = _add_command(
        commands,
        "zoom",
        _zoom,
        "paint around a picture again and again into a zoom",
        _ZOOM_EXAMPLES,
    )
    command.add_argument(
        "picture", nargs="?", type=Path, help="any picture file; without one, zoomc draws its own"
    )
    command.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("out/zoom.mp4"),
        help=".mp4, .mov, .mkv, .gif or .webp file, or, without an ending, a folder of PNG files "
        "(default: out/zoom.mp4)",
    )
    sheet = command.add_mutually_exclusive_group()
    sheet.add_argument(
        "--sheet",
        type=Path,
        default=True,
        metavar="FILE",
        help="PNG file for a contact sheet, all keyframes in one picture (default: "
        "NAME.keyframes.png beside the output)",
    )
    sheet.add_argument(
        "--no-sheet", dest="sheet", action="store_const", const=False, help="no contact sheet"
    )
    prompts = command.add_argument_group("what to paint")
    prompts.add_argument(
        "-p",
        "--prompt",
        action="append",
        help="what the new border shows; repeat for one prompt per keyframe (the last one stays)",
    )
    prompts.add_argument(
        "--prompt-at",
        nargs=2,
        metavar=("KEYFRAME", "PROMPT"),
        action="append",
        help="another prompt from this keyframe on, repeatable",
    )
    prompts.add_argument(
        "-n", "--negative-prompt", default="", help="what the picture should not show"
    )
    prompts.add_argument("--seed", type=int, default=0, help="same seed, same video (default: 0)")
    shape = command.add_argument_group("the zoom")
    shape.add_argument(
        "-k",
        "--keyframes",
        type=int,
        default=defaults.keyframes,
        help=f"how often to paint a new border (default: {defaults.keyframes})",
    )
    shape.add_argument(
        "--frames-per-keyframe",
        type=int,
        help="frames from one keyframe to the next; those in between are interpolated "
        f"(default: {defaults.frames_per_keyframe}, more for the built-in model)",
    )
    shape.add_argument(
        "--direction",
        choices=DIRECTIONS,
        default=defaults.direction,
        help="out: fly away from the picture; in: fly into it (default: out)",
    )
    shape.add_argument(
        "--shrink",
        type=float,
        help="what the frame shrinks to at each keyframe, as a share of its side, rounded to the "
        f"latent grid (default: {defaults.shrink}, less for the built-in model)",
    )
    shape.add_argument(
        "--feather",
        type=int,
        default=defaults.feather,
        help="pixels blended along the inside of the seam; 0 keeps every known pixel exactly "
        f"(default: {defaults.feather})",
    )
    shape.add_argument(
        "--size",
        type=_size,
        metavar="SIDE|WxH",
        help="frame in pixels: its shorter side, or both (default: what the model was trained at, "
        "in the shape of the picture)",
    )
    shape.add_argument(
        "--upscale",
        type=int,
        help="enlarge the video's frames this many times (default: to 256 pixels if smaller)",
    )
    shape.add_argument(
        "--fps", type=float, default=defaults.fps, help=f"frames a second (default: {defaults.fps})"
    )
    model = command.add_argument_group("the model")
    model.add_argument(
        "-m",
        "--model",
        help="folder of a diffusers inpainting pipeline, or its name on the hub if it is in the "
        "local cache; zoomc downloads nothing (default: the small built-in one)",
    )
    model.add_argument(
        "--scheduler", help="ddim, dpm++, euler, pndm, unipc, ... (default: the pipeline's own)"
    )
    model.add_argument(
        "--steps",
        type=int,
        default=defaults.steps,
        help=f"denoising steps a keyframe (default: {defaults.steps})",
    )
    model.add_argument(
        "--guidance",
        type=float,
        help="how closely to follow the prompt; 1 turns guidance off "
        f"(default: {DEFAULT_GUIDANCE}, less for the built-in model)",
    )
    model.add_argument("--no-compile", action="store_true", help="run in plain PyTorch, to compare")
    _add_model(model)
    command.add_argument(
        "--fresh", action="store_true", help="paint all keyframes again, dropping the kept ones"
    )
    command.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")


def _add_explain(commands: Any) -> None:
    command = _add_command(
        commands, "explain", _explain, "say what the compiler does with a model", _EXPLAIN_EXAMPLES
    )
    command.add_argument("model", nargs="?", help=_MODEL_HELP)
    _add_part(command)
    command.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="write charts to one page that opens offline; kernels are timed for it",
    )
    command.add_argument("--png", type=Path, metavar="FILE", help="the same charts as a picture")
    _add_model(command)


def _add_tune(commands: Any) -> None:
    command = _add_command(
        commands,
        "tune",
        _tune,
        "measure the tiles of a model's kernels and keep the fastest",
        cli_tune.EXAMPLES,
    )
    command.add_argument("model", nargs="?", help=_MODEL_HELP)
    cli_tune.add_arguments(command)
    _add_part(command)
    _add_model(command)


def _add_options(commands: Any) -> None:
    _add_command(
        commands, "options", _options, "list the compiler's options: default, variable, meaning"
    )


def _size(text: str) -> int | tuple[int, int]:
    try:
        sides = [int(side) for side in text.lower().split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 512 or 768x512")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def parse_options(pairs: Sequence[str]) -> dict[str, str]:
    """``["isa=avx2"]`` to ``{"isa": "avx2"}``, checked.

    Raises:
        ZoomcError: for an option that does not exist or cannot have that value.
    """
    from .options import Options

    options: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ZoomcError(f"-O {pair!r} is not KEY=VALUE, such as -O threads=4")
        options[key.strip().replace("-", "_")] = value.strip()
    Options.resolve(options=options)
    return options


def _prompts(arguments: argparse.Namespace, default: str) -> Prompts:
    given: list[str] = arguments.prompt or [default]
    if not arguments.prompt_at:
        return given[0] if len(given) == 1 else given
    by_keyframe = dict(enumerate(given, 1))
    for keyframe, prompt in arguments.prompt_at:
        try:
            by_keyframe[int(keyframe)] = prompt
        except ValueError:
            raise ZoomcError(
                f"--prompt-at takes a keyframe and a prompt, such as --prompt-at 3 'a city'; "
                f"{keyframe!r} is no number"
            ) from None
    return by_keyframe


def _hush() -> None:
    """Keep the libraries below from talking over the progress bars."""
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def _check_device(name: str | None) -> None:
    if name is None:
        return
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error)
        raise ZoomcError(f"cannot use the device {name!r}: {reason}") from None


def _zoom(arguments: argparse.Namespace) -> int:
    options = parse_options(arguments.options)
    from . import demo

    settings = demo.SETTINGS if arguments.model is None else ZoomSettings()
    given = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(settings)}
    given = {name: value for name, value in given.items() if value is not None}
    settings = dataclasses.replace(settings, **given)
    from .zoom.picture import load_picture
    from .zoom.sheet import sheet_path
    from .zoom.video import check_output

    # Before the seconds that torch takes to import: most mistakes are in the paths.
    check_output(arguments.output)
    sheet = sheet_path(arguments.output, arguments.sheet)
    picture: Any = None if arguments.picture is None else load_picture(arguments.picture)
    _hush()
    from .zoom.infinite import InfiniteZoom
    from .zoom.pipeline import DTYPES
    from .zoom.progress import Reporter, TerminalReporter

    _check_device(arguments.device)
    if picture is None:
        from .demo.picture import demo_picture

        picture = demo_picture()
    reporter = Reporter() if arguments.quiet else TerminalReporter()
    zoom = InfiniteZoom(
        arguments.model,
        compile=not arguments.no_compile,
        options=options,
        scheduler=arguments.scheduler,
        device=arguments.device,
        dtype=DTYPES[arguments.dtype],
        reporter=reporter,
    )
    default_prompt = demo.PROMPT if arguments.picture is None else ""
    try:
        output = zoom(
            picture,
            _prompts(arguments, default_prompt),
            arguments.output,
            settings,
            sheet=arguments.sheet,
            fresh=arguments.fresh,
        )
    except KeyboardInterrupt:
        reporter.note(
            "\nInterrupted. The finished keyframes are kept; the same command goes on from there."
        )
        return 130
    if not arguments.quiet:
        seconds = settings.frame_count / settings.fps
        print(f"{output}: {settings.frame_count} frames, {seconds:.1f} s")
        if sheet:
            print(f"{sheet}: its {settings.keyframes + 1} keyframes in one picture")
    return 0


def _explain(arguments: argparse.Namespace) -> int:
    options = parse_options(arguments.options)
    _hush()
    import zoomc

    from .errors import ReportFileError
    from .options import Options
    from .report import save

    _check_device(arguments.device)
    drawn = [path for path in (arguments.html, arguments.png) if path is not None]
    for path in drawn:
        if path.is_dir() or not path.parent.is_dir():
            raise ReportFileError(f"cannot write {str(path)!r}: it is a folder, or in none")
    # A simulated NPU takes its time, and its report none from the host's kernels.
    profile = bool(drawn) and Options.resolve(options=options).target != "npu"
    sections = []
    for part, model, inputs in _parts(arguments):
        report = zoomc.explain(model, *inputs, options=options, profile=profile)
        print(f"{part}\n{report}")
        sections.append((part, report))
    if drawn:
        save(sections, arguments.html, arguments.png)
        print(f"charts: {', '.join(map(str, drawn))}")
    return 0


def _tune(arguments: argparse.Namespace) -> int:
    options = parse_options(arguments.options)
    cli_tune.check(arguments)
    _check_device(arguments.device)
    _hush()
    return cli_tune.run(arguments, options, _parts(arguments))


def _parts(arguments: argparse.Namespace) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """The models a command speaks of: names, modules, and inputs of the shapes a zoom gives."""
    from . import demo
    from .zoom.pipeline import DTYPES, PARTS, config_unet, example_inputs, load_pipeline

    dtype = DTYPES[arguments.dtype]
    unet = arguments.model is not None and config_unet(arguments.model, dtype)
    if unet:
        yield "unet", *unet
        return
    pipeline: Any
    if arguments.model is None:
        pipeline = demo.demo_pipeline(dtype)
    else:
        pipeline = load_pipeline(arguments.model, dtype)
    if arguments.device is not None:
        pipeline.to(arguments.device)
    for part in PARTS:
        if arguments.part == "all" or part.startswith(arguments.part):
            yield part, *example_inputs(pipeline, part)


def _options(arguments: argparse.Namespace) -> int:
    from .options import describe

    for name, default, variable, help in describe():
        print(f"{name} = {default}\n    {help}\n    variable: {variable}")
    print('\nSet them with -O name=value, options={"name": value}, or the variable.')
    return 0


def _version() -> int:
    from importlib.metadata import version

    print(f"zoomc {version('zoomc')}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: arguments without the program's name; those of the process by default.

    Returns:
        0; 2 after a mistake, told in one line on standard error; 130 after an interrupt.
    """
    try:
        parser = build_parser()
        arguments = parser.parse_args(argv)
        if arguments.version:
            return _version()
        if not hasattr(arguments, "run"):
            parser.print_help()
            return 0
        return arguments.run(arguments)
    except ZoomcError as error:
        if os.environ.get("ZOOMC_DEBUG", "0") not in ("", "0"):
            traceback.print_exc()
        print(f"zoomc: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("zoomc: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # "zoomc options | head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
