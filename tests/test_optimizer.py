"""Every parameter's group, the closure of every schedule, and that decay acts where it should."""

import math

import pytest
import torch
from torch import nn

from conftest import TINY
from model_utils.models import description
from model_utils.models.build import build_module
from optimizer import (
    OptimizerSettings,
    Schedule,
    ScheduleSettings,
    build_optimizer,
    parameter_groups,
)


def module_of(**changes: object) -> nn.Module:
    import json

    return build_module(description.parse(json.dumps({**TINY, **changes}), "test"), torch.float64)


def names_in(module: nn.Module) -> dict[str, set[str]]:
    return {group["name"]: set(group["param_names"]) for group in parameter_groups(module, 0.1)}


def test_every_parameter_of_the_usual_network_decays() -> None:
    module = module_of()
    expected = {name for name, p in module.named_parameters() if p.requires_grad and p.numel()}
    assert names_in(module) == {"decay": expected}
    assert any(p.dim() == 1 for p in module.parameters()), (
        "e3nn's flat linear weights are one-dimensional and decay"
    )


def test_biases_norms_and_scalars_do_not_decay() -> None:
    module = module_of(
        interaction_cls="RealAgnosticResidualNonLinearInteractionBlock",
        interaction_cls_first="RealAgnosticResidualNonLinearInteractionBlock",
        readout_cls="NonLinearBiasReadoutBlock",
    )
    groups = names_in(module)
    layer_norms = {
        f"{name}.{leaf}"
        for name, m in module.named_modules()
        if isinstance(m, nn.LayerNorm)
        for leaf in ("weight", "bias")
    }
    biases = {
        name
        for name, p in module.named_parameters()
        if name.endswith("bias") and p.numel() and p.requires_grad
    }
    scalars = {f"interactions.{i}.{name}" for i in (0, 1) for name in ("alpha", "beta")}
    assert layer_norms
    assert biases
    one = {name for name, p in module.named_parameters() if p.numel() == 1 and p.requires_grad}
    assert groups["no_decay"] == layer_norms | biases | scalars | one
    assert groups["decay"] | groups["no_decay"] == {
        n for n, p in module.named_parameters() if p.requires_grad and p.numel()
    }


def test_decay_shrinks_only_the_decaying_group() -> None:
    module = nn.ModuleDict({"linear": nn.Linear(2, 2), "norm": nn.LayerNorm(2)})
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer = build_optimizer(module, OptimizerSettings(kind="adamw", lr=0.1, weight_decay=0.5))
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in module.named_parameters():
        assert torch.equal(p, before[name]) == (name != "linear.weight")


@pytest.mark.parametrize("kind", ["adam", "adamw"])
@pytest.mark.parametrize("amsgrad", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_fused_form_is_torchs_plain_one_up_to_last_bits(
    kind: str, amsgrad: bool, dtype: torch.dtype
) -> None:
    """Over steps of changing size, with decay; in weights of any number of elements."""
    generator = torch.Generator().manual_seed(3)
    weights = []
    for fused in (True, False):
        module = nn.Module()
        for number, size in enumerate((1, 7, 64, 1001)):
            start = torch.linspace(-1.0, 1.0, size, dtype=dtype)
            module.register_parameter(f"w{number}", nn.Parameter(start))
        settings = OptimizerSettings(kind=kind, lr=0.01, weight_decay=0.1, amsgrad=amsgrad)
        optimizer = build_optimizer(module, settings)
        assert all(group["fused"] for group in optimizer.param_groups)
        for group in optimizer.param_groups:
            group["fused"] = fused
        generator.manual_seed(3)
        for step in range(30):
            for p in module.parameters():
                p.grad = torch.randn(p.shape, generator=generator, dtype=dtype) / (1 + step % 7)
            optimizer.step()
        weights.append([p.detach() for p in module.parameters()])
    for first, second in zip(*weights, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=100 * torch.finfo(dtype).eps)


def rates(settings: ScheduleSettings, n: int, *, losses: list[float] | None = None) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = Schedule(optimizer, settings)
    found = [schedule.rate()]
    for i in range(n):
        if losses is not None:
            schedule.after_validation(losses[i])
        elif settings.unit == "step":
            schedule.after_step()
        else:
            schedule.after_epoch()
        found.append(schedule.rate())
    return found


def test_plateau_waits_for_more_than_its_patience() -> None:
    settings = ScheduleSettings(kind="plateau", factor=0.5, patience=1)
    assert rates(settings, 5, losses=[1.0, 1.0, 1.0, 0.5, 0.6]) == [1, 1, 1, 0.5, 0.5, 0.5]


def test_plateau_is_torchs_own_on_a_random_walk() -> None:
    losses = torch.rand(60, generator=torch.Generator().manual_seed(1)).tolist()
    reference = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    torchs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        reference, factor=0.7, patience=2, threshold=0.0
    )
    expected = [1.0]
    for loss in losses:
        torchs.step(loss)
        expected.append(reference.param_groups[0]["lr"])
    assert rates(
        ScheduleSettings(kind="plateau", factor=0.7, patience=2), 60, losses=losses
    ) == pytest.approx(expected)


def test_step_exponential_constant() -> None:
    assert rates(ScheduleSettings(kind="step", factor=0.1, period=2), 4) == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01]
    )
    assert rates(ScheduleSettings(kind="exponential", factor=0.5), 3) == pytest.approx(
        [1, 0.5, 0.25, 0.125]
    )
    assert rates(ScheduleSettings(kind="constant"), 3) == [1, 1, 1, 1]


def test_cosine_ends_at_its_horizon_and_stays_there() -> None:
    found = rates(ScheduleSettings(kind="cosine", horizon=4, min_lr=0.1), 6)
    assert found == pytest.approx(
        [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(t, 4) / 4)) for t in range(7)]
    )


@pytest.mark.parametrize(
    "kind", ["plateau", "step", "exponential", "cosine", "onecycle", "constant"]
)
def test_every_kind_warms_up_linearly(kind: str) -> None:
    settings = ScheduleSettings(kind=kind, unit="step", warmup=3, horizon=20, period=100)  # type: ignore[arg-type]
    assert rates(settings, 3)[:3] == pytest.approx([0.25, 0.5, 0.75])
    assert rates(settings, 3)[3] == pytest.approx(1.0)


def test_a_schedule_resumes_where_it_stood() -> None:
    settings = ScheduleSettings(kind="cosine", unit="step", warmup=2, horizon=10)
    whole = rates(settings, 8)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    first = Schedule(optimizer, settings)
    for _ in range(5):
        first.after_step()
    second = Schedule(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), settings)
    second.load_state_dict(first.state_dict())
    assert second.rate() == whole[5]
    second.after_step()
    assert second.rate() == whole[6]


def test_stage_two_holds_its_rate() -> None:
    schedule = Schedule(
        torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0),
        ScheduleSettings(kind="exponential"),
    )
    schedule.hold(0.125)
    schedule.after_epoch()
    assert schedule.rate() == 0.125
