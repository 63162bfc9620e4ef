from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline
from safetensors.torch import load_file

from zoomc.training.loop import Budget, Draw, Recipe, Stage
from zoomc.training.train import Run, TrainConfig, parse
from zoomc.training.unet import UnetConfig
from zoomc.training.vae import VaeConfig, normalise_latents, reconstruction_psnr

SIZE = 32


def tiny(steps: int, shards: int = 1) -> TrainConfig:
    budget = Budget(steps=steps)
    return TrainConfig(
        size=SIZE,
        pictures=16,
        vae=VaeConfig(channels=(8, 8, 8), groups=4),
        unet=UnetConfig(channels=(32, 32), text=32, text_layers=1),
        vae_budget=budget,
        unet_budget=budget,
        decoder_budget=budget,
        vae_batch=4,
        unet_batch=4,
        shards=shards,
    )


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def one_stage(folder: Path, steps: int, cuts: tuple[int, ...], shards: int) -> torch.nn.Module:
    """Model after ``steps`` steps, with a new process's worth of objects after each cut."""
    for stop in (*cuts, steps):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.SiLU(), torch.nn.Linear(8, 1))
        budget = Budget(steps=steps)
        stage = Stage("toy", folder, model, Recipe(lr=0.05, warmup=2), budget, 1, shards)

        def loss(step: Draw, model: torch.nn.Module = model) -> torch.Tensor:
            x = step.normal(torch.empty(16, 4))
            return (model(x) - x.sum(1, keepdim=True)).square().mean()

        while stage.step < stop:
            stage.update(loss)
        stage.save()
    stage.adopt_average()
    return model


@pytest.mark.parametrize("shards", [1, 2])
def test_a_cut_stage_ends_at_the_same_weights(tmp_path: Path, shards: int) -> None:
    whole = one_stage(tmp_path / "a", 7, (), shards)
    cut = one_stage(tmp_path / "b", 7, (2, 3), shards)
    assert same(whole, cut)


def test_a_cut_run_ends_at_the_same_pipeline(tmp_path: Path) -> None:
    whole = Run(tiny(2), tmp_path / "whole")
    whole.finish()

    cut = Run(tiny(2), tmp_path / "cut")
    cut.out.mkdir()
    cut_vae = cut._stage("vae", cut.model, Recipe(lr=1.5e-3, average=0.997), Budget(steps=2))
    data = cut.pictures()
    from zoomc.training.vae import vae_loss

    cut_vae.update(lambda step: vae_loss(cut.model, data, 4, torch.device("cpu"), step))
    cut_vae.save()
    resumed = Run(tiny(2), tmp_path / "cut")
    resumed.finish()

    assert same(whole.model, resumed.model)
    assert same(whole.denoiser, resumed.denoiser)
    for part in ("unet", "vae", "text_encoder"):
        names = [p.name for p in (tmp_path / "whole/pipeline" / part).glob("*.safetensors")]
        assert names
        for name in names:
            a, b = (tmp_path / r / "pipeline" / part / name for r in ("whole", "cut"))
            assert a.read_bytes() == b.read_bytes()
    plain = StableDiffusionInpaintPipeline.from_pretrained(tmp_path / "whole/pipeline")
    models = (plain.unet, plain.vae, plain.text_encoder)
    assert {w.dtype for model in models for w in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("part", "folders", "keys"),
    [
        ("decoder", {"vae"}, ("decoder.", "post_quant_conv.")),
        ("unet", {"unet", "text_encoder"}, ("",)),
    ],
)
def test_tuning_touches_one_part_alone(
    tmp_path: Path, part: str, folders: set[str], keys: tuple[str, ...]
) -> None:
    first = Run(tiny(1), tmp_path / "first").finish()
    tuned = Run(tiny(3), tmp_path / "tuned").tune(first, [part])
    changed: dict[str, set[str]] = {}
    for file in filter(Path.is_file, first.rglob("*")):
        name = file.relative_to(first)
        if (tuned / name).read_bytes() != file.read_bytes():
            assert file.suffix == ".safetensors"
            a, b = (load_file(folder / name) for folder in (first, tuned))
            found = {key for key, value in a.items() if not torch.equal(value, b[key])}
            changed[str(name.parent)] = found
            assert all(value.dtype == torch.float16 for value in b.values())
    assert set(changed) == folders
    assert all(key.startswith(keys) for key in set().union(*changed.values()))


def test_tuning_starts_from_what_was_learnt(tmp_path: Path) -> None:
    first = Run(tiny(1), tmp_path / "first").finish()
    run = Run(tiny(1), tmp_path / "tuned")
    run.tune(first, [])
    for part, model in (("unet", run.denoiser.unet), ("text_encoder", run.denoiser.text_encoder)):
        for file in (first / part).glob("*.safetensors"):
            learnt = load_file(file)
            assert learnt
            assert all(torch.equal(model.state_dict()[key], w) for key, w in learnt.items())


def test_a_stage_learns(tmp_path: Path) -> None:
    def error(model: torch.nn.Module) -> float:
        x = torch.randn(256, 4, generator=torch.Generator().manual_seed(9))
        return (model(x) - x.sum(1, keepdim=True)).square().mean().item()

    early, late = one_stage(tmp_path / "a", 1, (), 1), one_stage(tmp_path / "b", 300, (), 1)
    assert error(late) < 0.1 * error(early)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    one_stage(tmp_path, 1, (), 1)
    with pytest.raises(ValueError, match="another model"):
        Stage("toy", tmp_path, torch.nn.Linear(4, 4), Recipe(lr=1.0), Budget(steps=1), 1)


def test_a_budget_needs_an_end() -> None:
    with pytest.raises(ValueError, match="steps or minutes"):
        Budget()
    assert Budget(steps=10).used(5, 1e9) == 0.5
    assert Budget(minutes=2).used(10**9, 60) == 0.5
    assert Budget(steps=10, minutes=2).used(1, 90) == 0.75


def test_the_rate_warms_up_holds_and_falls() -> None:
    recipe = Recipe(lr=1.0, warmup=10, hold=0.4)
    assert recipe.rate(0, 0.0) == pytest.approx(0.1)
    assert recipe.rate(100, 0.3) == pytest.approx(1.0)
    assert recipe.rate(100, 1.0) == pytest.approx(0.01)
    assert recipe.rate(100, 0.7) == pytest.approx(0.505)


def test_steps_draw_their_own_numbers() -> None:
    like = torch.empty(8)
    first = Draw.of(0, "a", 1).normal(like)
    assert torch.equal(first, Draw.of(0, "a", 1).normal(like))
    for other in (
        Draw.of(1, "a", 1),
        Draw.of(0, "b", 1),
        Draw.of(0, "a", 2),
        Draw.of(0, "a", 1, 1),
    ):
        assert not torch.equal(first, other.normal(like))


def test_normalising_latents_keeps_the_pictures(tmp_path: Path) -> None:
    run = Run(tiny(1), tmp_path)
    pictures, vae = run.pictures(), run.model
    before = reconstruction_psnr(vae, pictures.images)
    normalise_latents(vae, pictures)
    x = pictures.batch(range(16))
    z = vae.encode(x).latent_dist.mean * vae.config.scaling_factor
    assert z.mean((0, 2, 3)).abs().max() < 0.1
    assert (z.std((0, 2, 3)) - 1).abs().max() < 0.1
    assert reconstruction_psnr(vae, pictures.images) == pytest.approx(before, abs=0.05)


@pytest.mark.parametrize(
    "asked", [["--vae-minutes", "3"], ["--vae-steps", "3"], ["--only", "unet"]]
)
def test_what_tuning_would_ignore_is_refused(asked, capsys):
    start = ["--out", "x", "--tune", "pipeline"]
    with pytest.raises(SystemExit):
        parse([*start, *asked])
    said = capsys.readouterr().err
    assert asked[0] in said and "--unet-minutes or --decoder-minutes" in said
    assert parse([*start, "--unet-minutes", "3"]).unet_minutes == 3
    assert parse(["--out", "x", *asked]).tune is None
