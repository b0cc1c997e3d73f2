"""An image on which the process dies each time ends the job; Ray alone would try for ever."""

import os
import sys

import pytest

from retinanet.cluster import job
from retinanet.cluster.model import PackedModel, pack_model
from retinanet.errors import UserError


class Crashing(PackedModel):
    """A model whose process dies when it is to predict."""

    def load(self, threads, **options):
        predictor = super().load(threads, **options)
        predictor.attempt = lambda images, **how: os._exit(9)
        return predictor


def test_a_job_whose_actors_always_die_ends(ray, peak_model, images, tmp_path, monkeypatch):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the actors cannot import this file
    monkeypatch.setattr(job, "RETRIES", 1)
    packed, how = pack_model(peak_model), job.How({})
    crashing = Crashing(packed.name, packed.files)
    begun = job.open_job(str(tmp_path / "found"), [str(images / "000.png")], packed, how, overwrite=False)
    header = {"format": job.FORMAT, "class_names": ("spot", "half")}
    with pytest.raises(UserError, match="the actors died 2 times over the same images"):
        begun.run(ray, crashing, how, header, job.Pool(1), None)
