"""Ray, started or joined quietly, and the pool of actors that a cluster can hold."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from retinanet.errors import UserError
from retinanet.inference.backend import count_cores

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pool:
    """Actors, and what each of them takes of the cluster.

    Attributes:
        actors: how many; each holds one loaded model.
        cpus: cores of one, which may be a part of a core.
        gpus: GPUs of one, likewise.
    """

    actors: int
    cpus: float = 1.0
    gpus: float = 0.0

    @property
    def threads(self) -> int:
        """Compute threads of an actor."""
        return max(1, int(self.cpus))


def connect(cluster: str | None = None) -> Any:
    """The module ``ray``, connected: to ``cluster``, to that of RAY_ADDRESS, or to one that is started in this process.

    A cluster that is started here listens on loopback only. Ray sends no usage statistics unless
    RAY_USAGE_STATS_ENABLED says so, and its own progress bars and lines are off.

    Args:
        cluster: address of a running cluster; ``auto`` for the one that runs on this machine.

    Raises:
        UserError: Ray is not installed, there is no such cluster, or none can be started here.
    """
    address = cluster or os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if address is None:  # read when ray is imported: the node's address is then 127.0.0.1
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError(
            f'this needs Ray, which cannot be imported ({error}): pip install "retinanet[cluster]"'
        ) from None
    if not ray.is_initialized():
        if address is None:  # where somebody imported ray before; without it, ports would be open to other machines
            ray._private.ray_constants.ENABLE_RAY_CLUSTER = False
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            with _silence_stderr():  # where it would say which of these settings it found
                if address is not None:
                    ray.init(address=address, **quiet)
                else:
                    ray.init(address="local", num_cpus=count_cores(), include_dashboard=False, **quiet)
        except Exception as error:  # Ray raises plain ones too
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            if address is not None:
                raise UserError(
                    f"no Ray cluster at {address} ({reason}). Where it wants a token, as `ray start` says, set "
                    "RAY_AUTH_MODE=token"
                ) from None
            raise UserError(
                f"Ray cannot start a cluster on this machine ({reason}). Where the machine is busy, try again; "
                "/tmp/ray/session_latest/logs says more"
            ) from None
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    return ray


@contextmanager
def _silence_stderr() -> Iterator[None]:
    """Nothing that a library in C++ writes is seen."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def choose_pool(
    nodes: list[Mapping[str, float]], *, actors: int | None, cpus: float, gpus: float | None, reading: float = 0.0
) -> Pool:
    """The pool that is asked for, or as many actors as the cluster can hold, where it can hold them.

    Args:
        nodes: the resources of each machine, ``CPU`` and ``GPU``.
        actors: how many; None for as many as fit.
        cpus: cores of one.
        gpus: GPUs of one; None for one where the cluster has any.
        reading: cores that others, such as the tasks that read a data set, need beside the pool.

    Raises:
        UserError: a number is out of its range, or the cluster cannot hold the pool; with the numbers and what to
            change.
    """
    if actors is not None and actors < 1:
        raise UserError(f"--actors is at least 1, got {actors}")
    if not 0 < cpus < float("inf") or (gpus is not None and not 0 <= gpus < float("inf")):
        raise UserError(f"--cpus is above 0 and --gpus at least 0, got {cpus} and {gpus}")
    for option, one, share in (("--cpus", "core", cpus), ("--gpus", "GPU", gpus or 0)):
        if share > 1 and share != int(share):
            raise UserError(f"{option} is a whole number or a part of one {one}, got {share}")
    cores, cards = (sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU"))
    gpus = float(cards > 0) if gpus is None else gpus
    fitting = sum(_count_fitting(node, cpus, gpus) for node in nodes)
    each = f"{cpus:g} CPU{'s' * (cpus != 1)}" + (f" and {gpus:g} GPU{'s' * (gpus != 1)}" if gpus else "")
    there = f"{len(nodes)} machine{'s' * (len(nodes) != 1)} with {cores:g} CPUs and {cards:g} GPUs"
    if fitting == 0:
        raise UserError(
            f"an actor takes {each}, and no machine of the cluster has that ({there}). Lower --cpus or --gpus"
        )
    if actors is None:
        spare = int((cores - reading) / cpus + 1e-9)
        actors = max(1, min(fitting, spare))
    if actors > fitting:
        raise UserError(
            f"{actors} actors of {each} do not fit into the cluster ({there}): it holds {fitting}. Set --actors to "
            f"{fitting} or fewer, or lower --cpus"
        )
    if actors * cpus + reading > cores + 1e-9:
        raise UserError(
            f"{actors} actors of {each} leave {max(0.0, cores - actors * cpus):g} of {cores:g} CPUs for reading the "
            f"data set, which takes {reading:g}: they would wait for each other for ever. Set actors to fewer than "
            f"{actors}, or cpus to {max(0.1, (cores - reading) / actors):.2g} or less"
        )
    return Pool(actors, cpus, gpus)


def _count_fitting(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    """How many actors a machine can hold."""
    counts = [node.get("CPU", 0.0) / cpus + 1e-9]
    if gpus:
        counts.append(node.get("GPU", 0.0) / gpus + 1e-9)
    return int(min(counts))


def list_nodes(ray: Any) -> list[Mapping[str, float]]:
    """The resources of each machine of the cluster."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def warn_of_others(ray: Any, pool: Pool) -> None:
    """Say so where others hold what the pool needs: it then waits for them."""
    free = float(ray.available_resources().get("CPU", 0.0))
    if free + 1e-9 < pool.actors * pool.cpus:
        _log.warning(
            "%g CPUs of the cluster are free now and %d actors take %g: some of them wait until others are done",
            *(free, pool.actors, pool.actors * pool.cpus),
        )
