"""A pool that a cluster cannot hold is refused with numbers, before anything starts."""

import pytest

from retinanet.cluster.engine import Pool, choose_pool
from retinanet.errors import UserError

LAPTOP, GPUS = [{"CPU": 2.0}], [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0}]


@pytest.mark.parametrize(
    ("nodes", "asked", "pool"),
    [
        (LAPTOP, {}, Pool(2)),
        (LAPTOP, {"cpus": 0.5}, Pool(4, 0.5)),
        (LAPTOP, {"reading": 1.0}, Pool(1)),
        ([{"CPU": 1.0}], {"reading": 0.5, "cpus": 0.5}, Pool(1, 0.5)),
        ([{"CPU": 3.0}, {"CPU": 3.0}], {"cpus": 2.0}, Pool(2, 2.0)),  # not three: no machine has 4 cores
        (GPUS, {}, Pool(2, 1.0, 1.0)),
        (GPUS, {"gpus": 0.0}, Pool(16, 1.0, 0.0)),
        (GPUS, {"gpus": 0.25, "actors": 8}, Pool(8, 1.0, 0.25)),
    ],
)
def test_what_a_cluster_holds(nodes, asked, pool):
    assert choose_pool(nodes, **{"actors": None, "cpus": 1.0, "gpus": None, **asked}) == pool


@pytest.mark.parametrize(
    ("nodes", "asked", "told"),
    [
        (LAPTOP, {"actors": 3}, "3 actors of 1 CPU do not fit .* 2 CPUs and 0 GPUs.* holds 2"),
        (LAPTOP, {"cpus": 4.0}, "takes 4 CPUs, and no machine of the cluster has that"),
        (LAPTOP, {"gpus": 1.0}, "takes 1 CPU and 1 GPU, and no machine"),
        (
            LAPTOP,
            {"actors": 1, "cpus": 2.0, "reading": 1.0},
            "leave 0 of 2 CPUs for .* cpus to 1 or less",
        ),
        (LAPTOP, {"actors": 2, "reading": 1.0}, "fewer than 2, or cpus to 0.5 or less"),
        (LAPTOP, {"actors": 0}, "--actors is at least 1, got 0"),
        (LAPTOP, {"cpus": 0.0}, "--cpus is above 0"),
        (LAPTOP, {"cpus": 1.5}, "a whole number or a part of one core, got 1.5"),
        (LAPTOP, {"cpus": float("nan")}, "--cpus is above 0"),
        (LAPTOP, {"gpus": -1.0}, "--gpus at least 0"),
        (LAPTOP, {"gpus": 1.5}, "--gpus is a whole number or a part of one GPU, got 1.5"),
    ],
)
def test_what_it_does_not_hold(nodes, asked, told):
    with pytest.raises(UserError, match=told):
        choose_pool(nodes, **{"actors": None, "cpus": 1.0, "gpus": None, **asked})
