"""What may differ when a run goes on."""

import pytest
import yaml

from retinanet.train.config import OptimConfig, RunConfig, plain
from retinanet.train.resume import STATE
from retinanet.train.start import check_output
from retinanet.types import UserError


@pytest.fixture
def options(tmp_path):
    """A run that was started with these options and has a saved step."""
    config = {"data": "cells", "optim": OptimConfig(), "run": RunConfig()}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(plain(config)))
    (tmp_path / STATE).touch()
    return config


def test_a_run_goes_on_with_the_same_options_and_on_other_devices(tmp_path, options):
    check_output(tmp_path, options, resume=True)
    elsewhere = RunConfig(accelerator="cpu", devices="2", workers=0, save_every=7)
    check_output(tmp_path, {**options, "run": elsewhere, "optim": OptimConfig(accumulate=2)}, resume=True)


def test_what_decides_the_result_may_not_differ(tmp_path, options):
    with pytest.raises(UserError, match=r"optim\.lr None -> 0\.1.*--resume"):
        check_output(tmp_path, {**options, "optim": OptimConfig(lr=0.1, accumulate=2)}, resume=True)
