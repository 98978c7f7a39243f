"""Two processes that train one model: the same weights, the same decisions, nothing sent for a predicted step."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("two_ranks.py")
GRADIENT_BYTES = 4 * (6 * 16 + 16 + 16 + 1)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank saw."""
    folder = tmp_path_factory.mktemp("ranks")
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(SCRIPT),
        str(folder),
    ]
    path = os.pathsep.join([str(SCRIPT.parents[1]), os.environ.get("PYTHONPATH", "")])
    env = os.environ | dict(OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo", PYTHONPATH=path)
    done = subprocess.run(launch, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_the_weights_are_bitwise_the_same_after_every_phase(ranks: list[dict[str, Any]]) -> None:
    one, other = (rank["phases"] for rank in ranks)
    assert [step["sha"] for step in one] == [step["sha"] for step in other]
    assert len({step["sha"] for step in one}) == len(one) and any(step["phase"] == "predict" for step in one)
    assert all(a["loss"] != b["loss"] for a, b in zip(one, other) if a["phase"] != "predict")


def test_a_jump_sends_nothing_and_a_computed_step_the_gradients_alone(ranks: list[dict[str, Any]]) -> None:
    for step in (step for rank in ranks for step in rank["phases"]):
        assert step["sent"] == dict(gradients=0 if step["phase"] == "predict" else GRADIENT_BYTES, others=0)


@pytest.mark.parametrize("case", ["one_catastrophe", "one_nan"])
def test_what_is_a_catastrophe_on_average_undoes_the_jump_on_both(ranks: list[dict[str, Any]], case: str) -> None:
    one, other = (rank[case] for rank in ranks)
    assert one == other and (one["phase"], one["nominal"], one["moved"]) == ("full", 10, True)


def test_what_is_a_catastrophe_on_one_rank_alone_does_not(ranks: list[dict[str, Any]]) -> None:
    """7 nats are beyond the margin, 3.55 are not: the mean decides for both."""
    one, other = (rank["one_mishap"] for rank in ranks)
    assert one == other and (one["phase"], one["nominal"]) == ("correct", 10)


def test_a_judged_step_sends_one_number_besides_its_gradients(ranks: list[dict[str, Any]]) -> None:
    assert {rank["one_mishap"]["sent"] for rank in ranks} == {8}


def test_hybrid_trainer_records_the_same_on_both(ranks: list[dict[str, Any]]) -> None:
    one, other = (rank["trained"] for rank in ranks)
    assert one == other and any(event == "jump" for *_, event in one["records"])
