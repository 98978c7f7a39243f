"""What HybridOptimizer is given: names, settings, a predictor; what is wrong is refused by name."""

from typing import Any

import pytest
import torch
from loops import CYCLES, PREDICTORS, gradients, hybrid, make, one_position, same, train, values
from torch import nn

from hybridlib import Hold, HybridOptimizer, Linear, Phase, PhaseSchedule


def test_it_is_an_optimizer_with_all_that_one_has() -> None:
    optimizer = hybrid(make())
    assert isinstance(optimizer, torch.optim.Optimizer) and optimizer.defaults["betas"] == (0.9, 0.999)
    assert optimizer.state is optimizer.optimizer.state and optimizer.param_groups is optimizer.optimizer.param_groups
    assert "lr: 0.01" in repr(optimizer)


@pytest.mark.parametrize("name", PREDICTORS)
def test_a_predictor_begins_anew_with_each_optimizer(name: str) -> None:
    ends, again = [], PREDICTORS[name]()
    for predictor in (again, again, PREDICTORS[name]()):
        model = make()
        train(model, hybrid(model, predictor), 64)
        ends.append(values(model))
    assert same(*ends[:2]) and same(*ends[1:])


@pytest.mark.parametrize("settings", [dict(moments="resett"), dict(jump_margin_nats=-1.0), dict(jump_margin_nats="4")])
def test_a_setting_that_is_none_is_named(settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(ValueError, match=f"HybridOptimizer: {name} = .*: must be "):
        hybrid(make(), **settings)


@pytest.mark.parametrize("lengths", [(10, 5, 0.6 * 20, 3, 200), (10, 2.5, 12, 3, 200), (10, 5, 12, 3, 2e2)])
def test_a_schedule_of_parts_of_steps_is_refused_before_anything_moves(lengths: tuple) -> None:
    with pytest.raises(ValueError, match="a schedule's lengths are whole numbers"):
        PhaseSchedule(*lengths)


def test_a_gradient_where_a_jump_is_due_is_refused() -> None:
    """It was taken at weights that the jump leaves behind."""
    model = make()
    optimizer = hybrid(model)
    while optimizer.phase is not Phase.PREDICT:
        one_position(model, optimizer)
    gradients(model, optimizer)
    with pytest.raises(RuntimeError, match=r"jump\(\)"):
        optimizer.update()


def test_shared_weights_move_once_under_their_first_name() -> None:
    model = nn.ModuleDict(dict(tok_emb=nn.Embedding(7, 4), head=nn.Linear(4, 7, bias=False)))
    model["head"].weight = model["tok_emb"].weight
    named = model.named_parameters(remove_duplicate=False)
    optimizer = HybridOptimizer(torch.optim.SGD(model.parameters(), 0.1), named, CYCLES, Linear())
    assert [name for name, _ in optimizer.weights] == ["tok_emb.weight"]


def test_two_parameters_of_one_name_are_refused() -> None:
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    named = [*one.named_parameters(), *other.named_parameters()]
    with pytest.raises(ValueError, match="weight, bias"):
        HybridOptimizer(torch.optim.SGD([w for _, w in named], 0.1), named, CYCLES, Hold())


def test_parameters_without_names_are_refused() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(TypeError, match="named_parameters"):
        HybridOptimizer(torch.optim.SGD(model.parameters(), 0.1), model.parameters(), CYCLES, Hold())


def test_a_parameter_without_a_name_has_that_of_its_group() -> None:
    model = make()
    optimizer = HybridOptimizer(
        torch.optim.Adam(list(model[0].named_parameters(prefix="0"))), model[0].named_parameters(), CYCLES, Hold()
    )
    optimizer.add_param_group(dict(params=list(model[3].named_parameters(prefix="3"))))
    assert [name for name, _ in optimizer.parameters] == ["weight", "bias", "3.weight", "3.bias"]


def test_one_predictor_in_two_optimizers_is_refused_where_it_is_used() -> None:
    shared, model = PREDICTORS["spectral"](), make()
    optimizer = hybrid(model, shared)
    train(model, optimizer, 5)
    other = make()
    its = hybrid(other, shared)
    gradients(model, optimizer)
    with pytest.raises(RuntimeError, match="is another HybridOptimizer's"):
        optimizer.step()
    train(other, its, 15)


def test_what_one_optimizer_says_of_matrices_is_not_told_to_the_next() -> None:
    shared = PREDICTORS["spectral"]()
    hybrid(make(), shared, is_matrix=lambda name, weight: False)
    model = make()
    hybrid(model, shared)
    assert shared.is_linear("3.weight", model[3].weight)


class Unfinished(Hold, by_name=False):
    """Forgets what all predictors share."""

    def __init__(self) -> None:
        pass


def test_a_predictor_that_calls_no_base_is_told_to() -> None:
    with pytest.raises(TypeError, match=r"Unfinished.__init__ must call super\(\).__init__\(\)"):
        hybrid(make(), Unfinished())


@pytest.mark.parametrize("loss", [torch.tensor(1.0), 1.0])
def test_a_loss_in_the_place_of_the_closure_is_told_its_name(loss: torch.Tensor | float) -> None:
    model = make()
    optimizer = hybrid(model)
    gradients(model, optimizer)
    before = values(model)
    with pytest.raises(TypeError, match=r"step\(loss=loss\)"):
        optimizer.step(loss)
    assert same(values(model), before) and optimizer.nominal_steps == 0
