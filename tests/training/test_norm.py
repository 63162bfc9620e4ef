import pytest
import torch

from zoomc.training.norm import TrainingGroupNorm, train_faster


@pytest.mark.parametrize("side", [5, 16, 33])
@pytest.mark.parametrize("channels, groups", [(8, 8), (12, 4), (64, 32)])
@pytest.mark.parametrize("last", [False, True])
def test_values_and_gradients_are_torch_s(
    side: int, channels: int, groups: int, last: bool
) -> None:
    torch.manual_seed(side)
    x = torch.randn(3, channels, side, side) + 1
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    ours = TrainingGroupNorm(groups, channels)
    torch.nn.init.normal_(ours.weight)
    torch.nn.init.normal_(ours.bias)
    theirs = torch.nn.GroupNorm(groups, channels)
    theirs.load_state_dict(ours.state_dict())
    results = []
    for norm in (ours, theirs):
        leaf = x.clone().requires_grad_()
        y = norm(leaf)
        grads = torch.autograd.grad((y * torch.sin(x * 3)).sum(), [leaf, *norm.parameters()])
        results.append([y, *grads])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("side", [8, 40])
def test_bf16_stays_bf16(side: int) -> None:
    norm = TrainingGroupNorm(4, 16)
    x = torch.randn(2, 16, side, side).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x.bfloat16())
    y.float().square().sum().backward()
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(
        y.float(), torch.nn.functional.group_norm(x, 4), rtol=0.03, atol=0.03
    )
    assert x.grad is not None and torch.isfinite(x.grad).all()


def test_swapping_keeps_the_weights() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.GroupNorm(2, 8))
    before = model.state_dict()
    after = train_faster(model).state_dict()
    assert isinstance(model[1], TrainingGroupNorm)
    assert all(torch.equal(before[k], after[k]) for k in before) and before.keys() == after.keys()
