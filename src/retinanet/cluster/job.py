"""``predict --engine ray``: many images on the actors of a cluster, each in the result once, whatever dies meanwhile.

The images are listed once and cut into tasks that depend on the list alone. A task writes one file, whole or not at
all, and the same file whoever does it: so a task that is done twice changes nothing, and a job that is started again
does the tasks whose files are missing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any
from warnings import catch_warnings, filterwarnings

from retinanet import __version__
from retinanet.cluster.engine import Pool, choose_pool, connect, list_nodes, warn_of_others
from retinanet.cluster.model import PackedModel, pack_model
from retinanet.cluster.store import Store, list_images
from retinanet.cluster.table import IMAGES, PARTS, decode
from retinanet.cluster.tally import Tally
from retinanet.cluster.worker import WINDOWS, How, Task, Worker, cut_ranges, summarize
from retinanet.errors import UserError
from retinanet.inference.pictures import check_options, choose_threshold, list_tile_options
from retinanet.plain import check_types

FORMAT = 1
JOB = "job.json"  # what is done
UNSEEN = ("batch_size", "trust", "trust_code")  # options that change nothing of what is found
LEAST, MOST, PARTS_WANTED = 8, 256, 200  # images of a task, and how many tasks there are at least where images allow
RETRIES = 20  # of a task whose actor died
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClusterConfig:
    """How a cluster is used.

    Attributes:
        actors: how many models work at a time; by default as many as the cluster holds.
        cpus: cores of an actor, or a part of one core.
        gpus: GPUs of an actor, or a part of one; by default one, where the cluster has any.
        max_errors: unreadable images that are allowed; with more the job stops. By default any number is.
        address: of a running Ray cluster, or auto for the one of this machine; by default that of RAY_ADDRESS, else a
            cluster is started for the job.
    """

    actors: int | None = None
    cpus: float = 1.0
    gpus: float | None = None
    max_errors: int | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        check_types(self, "cluster")


@dataclass(frozen=True)
class ClusterRun:
    """What a job has done, in this and earlier calls.

    Attributes:
        output: the folder or address of the results.
        images: of the job.
        objects: found in them.
        errors: images that cannot be read.
        reason: of the first of them; empty where there is none.
        seconds: of this call.
        speed: images/s from the end of the first task on: the start of the actors is not in it.
    """

    output: str
    images: int
    objects: int
    errors: int
    reason: str
    seconds: float
    speed: float

    @property
    def stops(self) -> bool:
        """Whether the exit code tells of images that could not be read."""
        return self.errors > 0

    def __str__(self) -> str:
        wrong = f", {self.errors} of which could not be read (the first: {self.reason})" if self.errors else ""
        return (
            f"{self.objects} objects in {self.images} images{wrong}; {self.output}/{PARTS} holds the results, which "
            "retinanet.cluster.read_results and write_coco read"
        )


def run_job(
    model: str,
    images: Sequence[str],
    *,
    output: str,
    score: float | None = None,
    load: Mapping[str, Any] | None = None,
    merge: str = "nmm",
    tile_scale: float | None = None,
    cluster: ClusterConfig = ClusterConfig(),
    overwrite: bool = False,
) -> ClusterRun:
    """Find objects in images on a Ray cluster; the same call goes on with a job that was interrupted.

    Args:
        model: as :func:`retinanet.predict`; it is carried to the machines of the cluster.
        images: paths, folders and patterns that every machine can read, and addresses such as s3://bucket/folder.
        output: folder or address of the results.
        score: as :func:`retinanet.predict`.
        load: options of :meth:`Predictor.load`.
        merge: as :func:`retinanet.predict`.
        tile_scale: likewise.
        cluster: how the cluster is used.
        overwrite: begin anew where there are results of another job, or of this one and all of it is done.

    Raises:
        UserError: no usable model, no image, a pool that the cluster cannot hold, too many unreadable images, or the
            results of another job.
    """
    check_options(score, None)
    if cluster.max_errors is not None and cluster.max_errors < 0:
        raise UserError(f"--max_errors is at least 0, got {cluster.max_errors}")
    packed, how = pack_model(model), How(dict(load or {}), score, merge, tile_scale)
    places = list_images(list(images))
    ray = connect(cluster.address)
    pool = choose_pool(list_nodes(ray), actors=cluster.actors, cpus=cluster.cpus, gpus=cluster.gpus)
    predictor = packed.check(pool.threads, how.load)
    list_tile_options(predictor, merge, tile_scale)
    choose_threshold(predictor, score)
    header = {
        "format": FORMAT,
        "class_names": predictor.class_names,
        "model_sha256": packed.sha256,
        "library_version": __version__,
    }
    del predictor
    job = open_job(output, places, packed, how, overwrite=overwrite)
    return job.run(ray, packed, how, header, pool, cluster.max_errors)


def open_job(output: str, places: Sequence[str], packed: PackedModel, how: How, *, overwrite: bool) -> Job:
    """The job of a folder, begun now or before.

    Raises:
        UserError: the folder has results of another job and ``overwrite`` is off.
    """
    store = Store(output)
    shown = {name: value for name, value in vars(how).items() if name != "load"}
    looks = {name: value for name, value in how.load.items() if name not in UNSEEN}
    record = {"format": FORMAT, "model_sha256": packed.sha256, **looks, **shown}
    done = [*store.list_files(PARTS), *store.list_files(WINDOWS)]
    begun = store.exists(JOB)
    if begun:
        before, known = _read_json(store, JOB), _read_json(store, IMAGES)
        changed = [name.removesuffix("_sha256") for name in record if before.get(name) != record[name]]
        more = len(set(places).difference(known))
        if more == len(places):
            changed.append("list of images")
        job = Job(store, known)
        finished = {task.file for task in job.tasks} <= set(done) and not any(WINDOWS in name for name in done)
        if not changed and not (overwrite and (more or finished)):
            if more:
                _log.warning(
                    "%d images are not in the list of the job in %s, which was made when it began: they are left out. "
                    "Give them another --output, or pass --overwrite to begin anew",
                    *(more, output),
                )
            return job
        if not overwrite:
            raise UserError(
                f"--output {output} holds a job with another {' and '.join(changed)}. Choose another --output, or pass "
                "--overwrite to begin anew"
            )
    elif done and not overwrite:
        raise UserError(
            f"--output {output} holds {done[0]}, but no {JOB} that says of which job it is. Choose another --output, "
            "or pass --overwrite to remove it"
        )
    store.remove([*done, *([JOB] if begun else [])])  # the record goes last: no job finds the results of another
    store.write(IMAGES, json.dumps(places).encode())
    store.write(JOB, (json.dumps(record, indent=1) + "\n").encode())  # last: there is a job when all of it is there
    return Job(store, list(places))


def _read_json(store: Store, name: str) -> Any:
    try:
        return json.loads(store.read(name))
    except ValueError as error:
        raise UserError(
            f"{store.address}/{name} is damaged ({error}). Choose another --output, or remove {JOB} and pass "
            "--overwrite to begin anew"
        ) from None


class Job:
    """The images of a job, and what of it is done.

    Args:
        store: of the results.
        places: the images.
    """

    def __init__(self, store: Store, places: Sequence[str]) -> None:
        self.store, self.places = store, places
        size = min(MOST, max(LEAST, len(places) // PARTS_WANTED // 8 * 8))  # whole batches of eight
        self.tasks = [
            Task("images", start, tuple(places[start : start + size])) for start in range(0, len(places), size)
        ]

    def run(
        self, ray: Any, model: Any, how: How, header: Mapping[str, Any], pool: Pool, max_errors: int | None
    ) -> ClusterRun:
        """Do what is not done yet; see :func:`run_job`."""
        files = set(self.store.list_files(PARTS)) | set(self.store.list_files(WINDOWS))
        if drafts := [name for name in files if not name.endswith(".parquet")]:
            self.store.remove(drafts)  # of a process that was killed
        tally = Tally(len(self.places), max_errors)
        deferred: list[list[int]] = []
        for task in self.tasks:
            if task.file in files:
                deferred += tally.add(self._read_summary(task), before=True)
        left = [task for task in self.tasks if task.file not in files]
        if tally.done:
            _log.warning("%d of %d images are done already", tally.done, len(self.places))
        if left or deferred:
            warn_of_others(ray, pool)
        with tally, raise_user_errors():
            work = partial(self._map, ray, ([ray.put(model)], how, self.store.address, header, pool.threads), pool)
            for summary in work(left):
                deferred += tally.add(summary)
            whole = [Task("join", index, (self.places[index],), 0, windows) for index, windows in deferred]
            for task in [task for task in whole if task.file in files]:
                tally.add(self._read_summary(task), before=True)
            whole = [task for task in whole if task.file not in files]
            ranges = [part for task in whole for part in cut_ranges(task.index, task.paths[0], task.last)]
            for tasks in ([part for part in ranges if part.file not in files], whole):
                for summary in work(tasks):
                    tally.add(summary)
        self.store.remove(self.store.list_files(WINDOWS))
        if tally.errors == len(self.places):
            raise UserError(f"none of {len(self.places)} images can be read. The first: {tally.reason}")
        return ClusterRun(
            self.store.address, len(self.places), tally.objects, tally.errors, tally.reason, tally.seconds, tally.speed
        )

    def _read_summary(self, task: Task) -> dict[str, Any]:
        header, rows = decode(self.store.read(task.file), f"{self.store.address}/{task.file}")
        return summarize(task, rows, header.get("deferred", []))

    def _map(self, ray: Any, worker: Sequence[Any], pool: Pool, tasks: Sequence[Task]) -> Iterator[Mapping[str, Any]]:
        """What the actors have done of tasks, in any order; ``worker`` has the arguments of :class:`Worker`."""
        if not tasks:
            return
        rows = ray.data.from_items([asdict(task) for task in tasks], override_num_blocks=len(tasks))
        with catch_warnings():  # Ray 2.60 announces other names for such options, and has none for this one
            filterwarnings("ignore", "`ray_remote_args`")
            # Without max_task_retries an image on which the process dies would be tried for ever.
            summaries = rows.map_batches(
                Worker,
                fn_constructor_args=tuple(worker),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=min(pool.actors, len(tasks))),
                num_cpus=pool.cpus,
                num_gpus=pool.gpus,
                max_task_retries=RETRIES,
            )
        yield from summaries.iter_rows()


@contextmanager
def raise_user_errors() -> Iterator[None]:
    """A user's mistake that an actor met ends the job as one that was met here, and so do images that kill actors."""
    from ray.exceptions import RayActorError

    try:
        yield
    except RayActorError:
        raise UserError(
            f"the actors died {RETRIES + 1} times over the same images, of too little memory or of an image on which a "
            "library crashes. Try fewer --actors or a smaller --batch_size: the same command goes on, and the images "
            f"are among those that no file in {PARTS} has. Ray says more: ray logs"
        ) from None
    except Exception as error:
        cause: Any = error
        while cause is not None and type(cause) is not UserError:
            cause = getattr(cause, "cause", None) or cause.__cause__
        if cause is None:
            raise
        raise UserError(str(cause)) from None
