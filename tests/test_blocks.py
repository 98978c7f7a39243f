"""Which block goes to which machine: pairs stay on one, all of them end, and few workers wait at the end."""

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridlib.study.cluster.blocks import PATIENCE_S, Block, Machine, NoCluster, Task, Waiting, machine_of
from hybridlib.study.cluster.hand import About

A, A2, B = Machine("cpu: A", "one"), Machine("cpu: A", "two"), Machine("cpu: B", "three")


def block(name: str, *seconds: float, **more) -> Block:
    run = SimpleNamespace(study="s", id=name)
    return Block(name, [Task(run, None, each) for each in seconds], **more)


def test_the_longest_block_goes_first() -> None:
    waiting = Waiting([block("short", 1.0), block("long", 5.0, 5.0), block("middle", 6.0)])
    assert [waiting.take(A, [A], 0.0).name for _ in range(3)] == ["long", "middle", "short"]
    assert waiting.take(A, [A], 0.0) is None


def test_a_block_that_has_begun_waits_for_its_machine_and_then_begins_anew_elsewhere() -> None:
    pair = block("pair", 1.0, 1.0)
    waiting = Waiting([pair])
    assert waiting.take(A, [A, B], 0.0) is pair
    pair.done.append(pair.tasks[0])
    waiting.put_back(pair, now_s=100.0)
    assert waiting.take(B, [B], 100.0 + PATIENCE_S - 1) is None, "its machine may come back"
    assert waiting.take(B, [A, B], 100.0 + 2 * PATIENCE_S) is None, "its machine is there"
    assert waiting.take(A, [A, B], 101.0) is pair and not pair.moved and len(pair.done) == 1
    waiting.put_back(pair, now_s=200.0)
    assert waiting.take(A2, [A2], 200.0 + PATIENCE_S) is pair and pair.moved and pair.done == []
    assert pair.machine == A2


def test_a_block_of_which_nothing_is_done_goes_anywhere_at_once() -> None:
    pair = block("pair", 1.0)
    waiting = Waiting([pair])
    waiting.take(A, [A], 0.0)
    waiting.put_back(pair, now_s=0.0)
    assert waiting.take(B, [B], 0.0) is pair and not pair.moved


def test_records_made_before_say_on_what_kind_of_machine_the_rest_is_made() -> None:
    begun = block("begun", 1.0, 1.0, machine=machine_of("cpu: A, 2 threads"))
    begun.done.append(begun.tasks[0])
    waiting = Waiting([begun])
    assert waiting.take(B, [A2, B], 0.0) is None
    assert waiting.take(A2, [A2, B], 0.0) is begun and begun.machine == A2


def test_a_group_stays_with_what_computes_alike() -> None:
    blocks = [block("x", 3.0, group="seed 1"), block("y", 2.0, group="seed 1"), block("z", 1.0, group="seed 2")]
    waiting = Waiting(blocks)
    assert waiting.take(A, [A, B], 0.0).name == "x"
    assert waiting.take(B, [A, B], 0.0).name == "z"
    assert waiting.take(B, [A, B], 0.0) is None
    assert waiting.take(A2, [A2, B], 0.0).name == "y"


def test_what_is_complete_says_which_kind_the_rest_of_its_group_needs_and_that_is_not_waited_for_in_vain() -> None:
    done = block("x", 1.0, group="seed 1", machine=machine_of("cpu: A, 2 threads"))
    done.done.append(done.tasks[0])
    waiting = Waiting([done, block("y", 1.0, group="seed 1"), block("z", 1.0, group="seed 2")])
    assert waiting.take(B, [B], 0.0).name == "z" and waiting.take(B, [B], 0.0) is None
    for there, now_s in (([B], 5.0), ([], 5.0 + PATIENCE_S), ([B], 6.0 + PATIENCE_S), ([A, B], 6.0 + 3 * PATIENCE_S)):
        waiting.require(there, now_s)  # too early, or nobody there who could tell, or one of that kind
    waiting.require([B], 100.0)
    with pytest.raises(NoCluster, match="seed 1: the others were trained on cpu: A. On cpu: B rounding differs"):
        waiting.require([B], 100.0 + PATIENCE_S)
    assert waiting.take(A, [A, B], 200.0).name == "y"
    waiting.require([B], 300.0), waiting.require([B], 400.0)


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.lists(st.floats(0.5, 20.0), min_size=1, max_size=4), min_size=1, max_size=30),
    workers=st.integers(1, 6),
    losses=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 5)), max_size=12),
)
def test_whoever_is_lost_each_block_ends_whole_on_one_machine(lengths, workers, losses) -> None:
    """A little world of its own clock: workers, each on a machine of its own, take tasks, and at times one is lost."""
    blocks = [block(str(at), *seconds) for at, seconds in enumerate(lengths)]
    waiting, made, now = Waiting(blocks), {}, 0.0
    machines = [Machine("cpu: A", f"host {at}") for at in range(workers)]
    busy: dict[int, tuple[float, Block]] = {}
    lost_at = sorted(losses)
    for turn in range(100_000):
        for loss in [each for each in lost_at if each[0] <= turn]:
            lost_at.remove(loss)
            if (at := loss[1] % workers) in busy:
                waiting.put_back(busy.pop(at)[1], now)
                machines[at] = Machine("cpu: A", f"host {workers + len(made) + turn}")  # it comes back as another
        for at, machine in enumerate(machines):
            if at not in busy and (taken := waiting.take(machine, machines, now)):
                busy[at] = now + taken.todo[0].seconds, taken
        if not busy and not waiting.blocks:
            break
        if not busy:
            now += PATIENCE_S
            continue
        at = min(busy, key=lambda each: busy[each][0])
        now, of = busy[at]
        made[of.todo[0]] = machines[at]
        of.done.append(of.todo[0])
        if of.todo:
            busy[at] = now + of.todo[0].seconds, of
        else:
            del busy[at]
    for each in blocks:
        assert not each.todo and len({made[task] for task in each.tasks}) == 1
    if not losses:
        least = max(sum(map(sum, lengths)) / workers, *map(sum, lengths))
        assert now <= (2 - 1 / workers) * least + 1e-6


HERE = About(same=dict(NUMERICS=3, schema="a", python="3.11.2", torch="2.13.0"), host="h", processor="P", gpus=[])


@pytest.mark.parametrize(("key", "value"), [("NUMERICS", 2), ("torch", "2.12.0"), ("schema", "b"), ("numpy", "1.0")])
def test_a_worker_of_other_versions_is_refused_and_both_are_named(key, value) -> None:
    with pytest.raises(ValueError, match=f"{key} is {value} there, {HERE.same.get(key)} here"):
        HERE.model_copy(update=dict(same=HERE.same | {key: value})).must_be_like(HERE)
    HERE.model_copy(deep=True).must_be_like(HERE)


def test_each_worker_of_a_host_gets_a_gpu_of_its_own() -> None:
    there = HERE.model_copy(update=dict(gpus=["H100", "H100", "A100"]))
    assert [there.gpu_for("auto", taken) for taken in ([], ["0"], ["1", "0"])] == ["0", "1", "2"]
    with pytest.raises(ValueError, match="each of the 3 GPUs of h has a worker already"):
        there.gpu_for("auto", ["0", "1", "2"])
    assert there.machine("auto", "2") == Machine("cuda: A100", "h")
    assert HERE.model_copy(update=dict(gpus=["H100"])).gpu_for("auto", []) == "", "the only one needs no choice"
    assert there.gpu_for("cuda:1", ["0"]) == "1" and there.gpu_for("cpu", []) == ""
    with pytest.raises(ValueError, match="cuda:1: it has a worker already; --device auto gives each a GPU of its own"):
        there.gpu_for("cuda:1", ["1"])
    assert there.machine("cuda:2", "").computes == "cuda: A100"
    assert there.machine("cpu", "").computes == "cpu: P"
    with pytest.raises(ValueError, match="cuda:0: it has no GPU"):
        HERE.gpu_for("cuda:0", [])
    with pytest.raises(ValueError, match="cuda:3: its last GPU is cuda:2"):
        there.gpu_for("cuda:3", [])
