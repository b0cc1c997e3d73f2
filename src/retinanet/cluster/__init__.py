"""Prediction on a Ray cluster: ``retinanet.cluster.detect`` for a data set of Ray, and jobs that go on where they were.

Needs ``pip install "retinanet[cluster]"``; reading results needs pyarrow only.
"""

from retinanet.cluster.detect import detect
from retinanet.cluster.job import ClusterConfig, ClusterRun
from retinanet.cluster.table import iterate_results, read_results, write_coco

__all__ = ["ClusterConfig", "ClusterRun", "detect", "iterate_results", "read_results", "write_coco"]
