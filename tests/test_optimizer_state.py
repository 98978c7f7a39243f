"""HybridOptimizer's state: saved, loaded at any position, copied, pickled, and grown."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from loops import (
    CYCLES,
    PREDICTORS,
    Wild,
    batch,
    gradients,
    hybrid,
    loss_of,
    make,
    one_position,
    same,
    to_jump,
    train,
    values,
)
from torch import nn
from torch.optim.lr_scheduler import StepLR

from hybridlib import Drift, HybridOptimizer, Phase


def saved(state: Any) -> Any:
    """As it comes back from a file that may hold no code."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(
    ("name", "moments"), [*((name, "keep") for name in PREDICTORS), ("spectral", "decay"), ("spectral", "reset")]
)
def test_loading_at_every_position_of_two_cycles_goes_on_bitwise(name: str, moments: str) -> None:
    """Before the first step, in every phase, with a jump due, and with one made that may yet be undone."""
    model = make()
    optimizer = hybrid(model, PREDICTORS[name](), moments=moments)
    kept = []
    while optimizer.nominal_steps < 40:
        kept.append(saved(dict(model=model.state_dict(), optimizer=optimizer.state_dict())))
        one_position(model, optimizer)
    end = values(model)
    for state in kept[: 1 + 3 + 2 * 7]:
        fresh = make()
        again = hybrid(fresh, PREDICTORS[name](), moments=moments)
        with torch.no_grad():
            fresh[0].weight.add_(1.0)
        fresh.load_state_dict(state["model"])
        again.load_state_dict(state["optimizer"])
        while again.nominal_steps < 40:
            one_position(fresh, again)
        assert same(values(fresh), end), state["optimizer"]["hybrid"]["position"]


def test_a_jump_loaded_from_a_file_can_still_be_undone() -> None:
    model, fresh = make(), make()
    optimizer, again = hybrid(model, Wild(50.0)), hybrid(fresh, Wild(50.0))
    before = to_jump(model, optimizer)
    again.load_state_dict(saved(optimizer.state_dict()))
    fresh.load_state_dict(saved(model.state_dict()))
    again.step(loss=gradients(fresh, again))
    assert (
        all(torch.equal(weight, before[name]) for name, weight in fresh.named_parameters())
        and again.phase is Phase.FULL
    )


def test_the_wrapped_optimizers_own_state_is_taken_too() -> None:
    """A run that was begun without the method goes on with it."""
    model, other = make(), make()
    plainly = torch.optim.Adam(model.parameters(), lr=0.03)
    loss_of(model, batch(0)).backward()
    plainly.step()
    optimizer = hybrid(other)
    optimizer.load_state_dict(saved(plainly.state_dict()))
    assert optimizer.param_groups[0]["lr"] == 0.03 and optimizer.nominal_steps == 0
    moments = (state["exp_avg"] for state in optimizer.state.values())
    assert all(torch.equal(moment, state["exp_avg"]) for moment, state in zip(moments, plainly.state.values()))


@pytest.mark.parametrize("how", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
@pytest.mark.parametrize("with_scheduler", [False, True])
@pytest.mark.parametrize("at", [0, 5, 12, 20])
def test_a_copy_goes_on_by_itself_as_the_first_would(how: Callable[[Any], Any], with_scheduler: bool, at: int) -> None:
    """A scheduler puts its own `step` into the optimizer: a copy with that one would move the first one's weights."""
    model = make()
    optimizer = hybrid(model)
    if with_scheduler:
        StepLR(optimizer, 100)
    train(model, optimizer, at)
    before = values(model)
    its_model, copied = how((model, optimizer))
    train(its_model, copied, 40)
    assert same(values(model), before)
    train(model, optimizer, 40)
    assert same(values(model), values(its_model)) and not same(values(model), before)


def test_a_copy_keeps_what_groups_say_of_matrices() -> None:
    model = make()
    groups = [
        dict(params=[model[0].weight], orthogonalize=False),
        dict(params=[*model[1:].parameters(), model[0].bias]),
    ]
    optimizer = HybridOptimizer(
        torch.optim.Adam(groups, lr=0.01), model.named_parameters(), CYCLES, PREDICTORS["spectral"]()
    )
    its_model, copied = pickle.loads(pickle.dumps((model, optimizer)))
    for its, one in ((model, optimizer), (its_model, copied)):
        assert not one.predictor.is_linear("0.weight", its[0].weight) and one.predictor.is_linear(
            "3.weight", its[3].weight
        )


def test_state_dict_hooks_run_and_may_change_the_state() -> None:
    model, ran = make(), []
    optimizer = hybrid(model)
    train(model, optimizer, 15)
    optimizer.register_state_dict_pre_hook(lambda opt: ran.append("pre"))
    optimizer.register_state_dict_post_hook(lambda opt, state: state | dict(mine=1))
    optimizer.register_load_state_dict_pre_hook(lambda opt, state: {k: v for k, v in state.items() if k != "mine"})
    optimizer.register_load_state_dict_post_hook(lambda opt: ran.append("loaded"))
    state = optimizer.state_dict()
    keys = set(state)
    optimizer.load_state_dict(state)
    assert state["mine"] == 1 and set(state) == keys and ran == ["pre", "loaded"]


def test_parameters_added_in_the_middle_are_stepped_jumped_and_saved() -> None:
    def grown(until: int) -> tuple[nn.Module, HybridOptimizer]:
        model = make()
        optimizer = HybridOptimizer(
            torch.optim.Adam(model[0].parameters(), lr=0.01), model.named_parameters(), CYCLES, PREDICTORS["spectral"]()
        )
        train(model, optimizer, 5)
        optimizer.add_param_group(dict(params=list(model[3].parameters()), lr=0.02, orthogonalize=True))
        train(model, optimizer, until)
        return model, optimizer

    model, optimizer = grown(15)
    other, its = grown(5)
    assert [name for name, _ in optimizer.weights] == ["0.weight", "0.bias", "3.weight", "3.bias"]
    assert optimizer.predictor.is_linear("3.weight", model[3].weight)
    assert {f"anchor.{name}" for name, _ in optimizer.weights} <= set(optimizer.predictor.store.names())
    other.load_state_dict(model.state_dict())
    its.load_state_dict(saved(optimizer.state_dict()))
    train(model, optimizer, 40), train(other, its, 40)
    assert same(values(model), values(other)) and len(optimizer.param_groups) == 2


@pytest.mark.parametrize("at", [2, 5, 12, 13, 16])
@pytest.mark.parametrize(("before", "after"), [("spectral", "drift"), ("drift", "spectral"), ("linear", "nesterov")])
def test_the_path_of_another_predictor_is_left_with_a_warning(before: str, after: str, at: int) -> None:
    """In Warmup, in Full, after a jump, in Correct, and in the next Full."""
    model, other = make(), make()
    optimizer, its = hybrid(model, PREDICTORS[before]()), hybrid(other, PREDICTORS[after]())
    train(model, optimizer, at)
    other.load_state_dict(model.state_dict())
    with pytest.warns(UserWarning, match=r"a new one begins: it is of \w+, \d copies, not of \w+, \d copies"):
        its.load_state_dict(saved(optimizer.state_dict()))
    train(other, its, 64)
    assert its.nominal_steps == 64 and its.computed_steps - optimizer.computed_steps < 64 - optimizer.nominal_steps
    assert all(value.isfinite().all() for value in values(other).values())


def test_a_window_of_another_length_begins_a_new_path() -> None:
    model, other = make(), make()
    optimizer, its = hybrid(model, Drift(window=4)), hybrid(other, Drift(window=6))
    train(model, optimizer, 5)
    with pytest.warns(UserWarning, match="it is of Drift, 4 copies, not of Drift, 6 copies"):
        its.load_state_dict(optimizer.state_dict())
    train(other, its, 30)
    assert its.nominal_steps >= 30


def test_a_state_of_before_undone_jumps_were_counted_is_taken() -> None:
    model, other = make(), make()
    optimizer, its = hybrid(model), hybrid(other)
    train(model, optimizer, 20)
    state = saved(optimizer.state_dict())
    state["hybrid"] = {key: value for key, value in state["hybrid"].items() if key not in ("undone_jumps", "path_of")}
    other.load_state_dict(model.state_dict())
    its.load_state_dict(state)
    train(model, optimizer, 40), train(other, its, 40)
    assert same(values(model), values(other)) and its.undone_jumps == 0
