"""Plans as a whole: what follows from a budget, from the memory, from what was given; and their file."""

import re

import pytest
import yaml

from retinanet.errors import UserError
from retinanet.model.presets import preset
from retinanet.planning.machine import GB, Machine, find_host
from retinanet.planning.memory import predict_memory
from retinanet.planning.plan import Choice, read_plan
from retinanet.planning.planner import Origin, Planner
from retinanet.planning.speed import Speed, parse_budget
from retinanet.plotting.html import format_time
from retinanet.training.given import recall_plan
from retinanet.yaml_files import find_line

GPU = {"device": "cuda", "cores": 16, "bf16": True, "here": False}


@pytest.fixture
def make(facts, host):
    """Plans for blood cells on a laptop that takes 2 s for a megapixel, with changes."""

    def make(given=None, *, facts=facts(), host=host(), recipe="default", budget=None, pace=2.0):  # noqa: B008
        time = None if pace is None else lambda architecture, size: Speed(pace, 0.0)
        names = tuple(facts.classes)
        planner = Planner(
            "cells", [], names, facts, host, given or {}, recipe, budget, lambda name: Origin(preset(name)), time
        )
        return planner.make()

    return make


def test_every_choice_has_a_reason_and_the_same_facts_give_the_same_plan(make):
    plan = make()
    assert all(choice.reason for choice in plan.choices)
    assert plan.values["model"] == "lite" and plan.values["image.short"] == 416 and plan.values["epochs"] == 49
    assert make() == plan


def test_what_was_given_wins_and_the_rule_is_told(make):
    choices = {choice.option: choice for choice in make({"epochs": 5}).choices}
    assert choices["epochs"].value == 5 and choices["epochs"].given and not choices["batch_size"].given
    assert "by the rules 49: so that few images" in choices["epochs"].reason


@pytest.mark.parametrize("minutes", [15, 30, 60, 240, 3000])
def test_a_budget_is_kept_and_used(make, minutes):
    plan = make(budget=60 * minutes)
    assert plan.seconds <= 60 * minutes
    # nearly all of it is used, unless more epochs would be of no use
    assert plan.seconds + plan.epoch_seconds > 0.85 * 60 * minutes or plan.values["epochs"] == 72
    assert plan.values["image.short"] <= 416


def test_larger_budgets_give_larger_images_then_more_epochs(make):
    plans = [make(budget=60 * minutes).values for minutes in (12, 25, 50, 100, 200)]
    shorts = [plan["image.short"] for plan in plans]
    assert shorts == sorted(shorts) and shorts[0] < shorts[-1] == 416
    assert plans[-1]["epochs"] > plans[-2]["epochs"]


def test_a_budget_that_nothing_fits_says_the_least_that_would(make):
    with pytest.raises(UserError, match=r"2 min are too few for anything; the least .*--budget (\d+)m") as caught:
        make(budget=120)
    least = str(caught.value).rpartition(" ")[2]
    assert make(budget=parse_budget(least)).values["epochs"] >= 1


def test_a_refused_budget_tells_of_other_work(make, host):
    with pytest.raises(UserError, match=r"--budget \d+m; other work takes about 1\.5 of the cores now$"):
        make(budget=120, host=host(busy=1.5))


def test_a_budget_needs_a_machine_that_is_here(make):
    with pytest.raises(UserError, match="a step can be timed on this machine only"):
        make(budget=3600, pace=None)


def test_given_values_win_and_their_cost_is_told(make):
    plan = make({"image.short": 640, "epochs": 30}, budget=600)
    assert plan.values["image.short"] == 640 and plan.values["epochs"] == 30
    assert any("more than the budget of 10 min" in note for note in plan.notes)
    assert "yours" in plan.summary() and "yours" not in plan.summary(given=False)


def test_gpus_of_24_and_80_gb_get_the_papers_network(make, facts, host):
    aerial = facts(images=5000, short=facts().short.__class__(*[1500] * 5), small=24.0)
    for memory in (24, 80):
        plan = make(facts=aerial, host=host(**GPU, device_memory=memory * GB), pace=None)
        assert plan.values["model"] == "resnet50" and plan.values["image.short"] == 800
        assert plan.values["batch_size"] == 16 and plan.memory.peak < memory * GB
        assert plan.seconds is None and "time: not known" in plan.summary()


def test_a_batch_is_shared_out_where_memory_is_short(make, host):
    whole = make()
    small = make(host=host(memory=2.5 * GB))
    assert whole.values["optim.accumulate"] == 1 and small.values["optim.accumulate"] > 1
    assert small.values["batch_size"] == 8 and small.memory.peak < 2.5 * GB
    assert small.values["image.short"] == whole.values["image.short"]


def test_a_size_that_does_not_fit_is_refused_with_one_that_does(make, host):
    with pytest.raises(UserError, match=r"--image.short (\d+) --image.long (\d+)") as caught:
        make({"image.short": 3008, "image.long": 6016}, host=host(memory=3 * GB))
    short, long = (int(number) for number in re.findall(r"image\.\w+ (\d+)", str(caught.value)))
    assert make({"image.short": short, "image.long": long}, host=host(memory=3 * GB)).memory.peak < 3 * GB
    with pytest.raises(UserError, match="smaller model"):
        make({"model": "resnet152"}, host=host(memory=1 * GB))


def test_another_recipe_decides_network_size_and_schedule(make):
    values = make(recipe="paper").values
    assert values["model"] == "resnet50" and (values["image.short"], values["image.long"]) == (800, 1333)
    assert values["epochs"] == 12 and values["batch_size"] == 16
    assert "architecture.anchors" not in values and "augment.hflip" not in values


def test_a_saved_model_keeps_its_size_and_anchors(facts, host):
    from retinanet.images.preprocess import Preprocess
    from retinanet.model.postprocess import Postprocess

    origin = Origin(preset("lite"), Preprocess(short=300, long=400), Postprocess(max_detections=500))
    planner = Planner("x", [], ("a",), facts(), host(), {"model": "folder"}, "default", None, lambda _: origin, None)
    values = planner.make().values
    assert (values["image.short"], values["image.long"], values["postprocess.max_detections"]) == (300, 400, 500)
    assert "architecture.anchors" not in values and "architecture.depth" not in values


def test_the_file_of_a_plan_comes_back(make, tmp_path):
    plan = make(budget=1800)
    path = tmp_path / "plan.yaml"
    path.write_text(plan.to_yaml(), encoding="utf-8")
    names = tuple(plan.facts.classes)
    assert read_plan(path, names) == plan.values
    comments = [line for line in path.read_text().splitlines() if line.lstrip().startswith("#")]
    assert len(comments) >= len(plan.choices)
    assert find_line(path, ("image", "short")) == 1 + next(
        number for number, line in enumerate(path.read_text().splitlines()) if line.startswith("  short:")
    )
    with pytest.raises(UserError, match=r"line 5: the plan is for other data.*Platelets.*in one of them only"):
        read_plan(path, ("tree",))
    with pytest.raises(UserError, match="in another order"):
        read_plan(path, names[::-1])


def test_a_run_that_goes_on_before_it_has_a_model_knows_its_plan(make, tmp_path):
    plan = make(budget=1800)
    names = tuple(plan.facts.classes)
    assert recall_plan(tmp_path, names) == {}
    (tmp_path / "plan.yaml").write_text(plan.to_yaml(), encoding="utf-8")
    assert {name: entry["value"] for name, entry in recall_plan(tmp_path, names).items()} == plan.values


def test_names_of_classes_survive_the_file(make, facts, tmp_path):
    names = ["no", "1", "a: b", "Käfer", "x, y", "[z]", "#1", "'"]
    plan = make(facts=facts(classes=dict.fromkeys(names, 3)))
    path = tmp_path / "plan.yaml"
    path.write_text(plan.to_yaml(), encoding="utf-8")
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["data"]["classes"] == names
    assert read_plan(path, names) == plan.values


def test_something_else_is_no_plan(tmp_path):
    path = tmp_path / "other.yaml"
    path.write_text("epochs: 3\n")
    with pytest.raises(UserError, match="is no plan"):
        read_plan(path, ("a",))


@pytest.mark.parametrize(
    ("text", "seconds"), [("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("90s", 90), ("0.5h", 1800)]
)
def test_budgets(text, seconds):
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "m", "-5m", "0m", "five minutes", "30m later", "nan"])
def test_no_budgets(text):
    with pytest.raises(UserError, match="budget: expected a time"):
        parse_budget(text)


@pytest.mark.parametrize(
    ("seconds", "text"), [(40, "40 s"), (720, "12 min"), (12000, "3 h 20 min"), (300000, "3.5 days")]
)
def test_times_as_a_person_says_them(seconds, text):
    assert format_time(seconds) == text


@pytest.mark.parametrize("values", [{"cores": 0}, {"memory": -1.0}, {"device": "tpu"}])
def test_machines_that_there_are_not(values):
    with pytest.raises(UserError, match="machine"):
        Machine(**values)


def test_this_machine_and_another():
    here = find_host(Machine(), "cpu")
    assert here.here and here.cores >= 1 and here.memory > 0 and here.room == here.memory
    there = find_host(Machine(device="cuda", device_memory=24.0, cores=16, memory=64.0))
    assert (there.device_memory, there.cores, there.memory) == (24 * GB, 16, 64 * GB) and not there.here
    assert there.room == 24 * GB


def test_memory_grows_as_it_must():
    """Activations with the pixels, weights not at all; bf16 takes about half of the activations."""
    architecture = preset("resnet18")
    one, four = (predict_memory(architecture, 3, size, 2) for size in ((128, 128), (256, 256)))
    assert four.activations == pytest.approx(4 * one.activations, rel=0.05) and four.weights == one.weights
    halved = predict_memory(architecture, 3, (512, 512), 8, bf16=True)
    full = predict_memory(architecture, 3, (512, 512), 8)
    assert 0.45 < halved.activations / full.activations < 0.6
    parameters = sum(p.numel() for p in architecture.build(3).parameters())
    assert full.weights == 5 * 4 * parameters  # itself, its gradient, two moments, the average
    assert predict_memory(architecture, 3, (512, 512), 8, optimizer="sgd", average=False).weights == 3 * 4 * parameters


def test_a_choice_is_plain(make):
    assert all(isinstance(choice, Choice) for choice in make().choices)
    assert make().to_dict()["options"]["model"]["value"] == "lite"
