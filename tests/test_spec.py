"""The description of a model: written, read in every format, and refused in words whatever stands in it."""

import copy
import json
import math
import re
from dataclasses import asdict, fields, is_dataclass, replace

import pytest

from retinanet import __version__
from retinanet.anchors.lattice import AnchorLattice, LatticeCompat
from retinanet.errors import UserError
from retinanet.images.preprocess import Preprocess
from retinanet.images.tiling import Tiling
from retinanet.losses.config import LossConfig
from retinanet.model.postprocess import Postprocess
from retinanet.model.presets import PRESETS, Architecture
from retinanet.spec import FORMAT, ModelSpec, check_version

ABSENT = object()


def plain(spec):
    """As a JSON file holds it."""
    return json.loads(json.dumps(spec.to_dict()))


def changed(values, path, value):
    """A copy with one entry replaced, or removed; ``architecture__depth`` is an entry of ``architecture``."""
    *outer, last = path.split("__") if isinstance(path, str) else path
    values = place = copy.deepcopy(values)
    for key in outer:
        place = place[key]
    if value is ABSENT:
        del place[last]
    else:
        place[last] = value
    return values


def test_nothing_has_its_default(full_spec):
    def defaults(value, usual):
        for entry in fields(value):
            here, there = getattr(value, entry.name), getattr(usual, entry.name)
            if is_dataclass(here):
                yield from defaults(here, there)
            elif here == there:
                yield entry.name

    usual = ModelSpec(("a",), architecture=Architecture(), tiling=Tiling(), loss=LossConfig())
    # the pyramid has these strides and no others; an input settles the spacing, and a model file has none
    assert sorted(defaults(full_spec, usual)) == ["spacing", "strides"]


def test_there_and_back(full_spec):
    values = plain(full_spec)
    assert ModelSpec.from_dict(values) == full_spec
    assert hash(ModelSpec.from_dict(values).architecture) == hash(full_spec.architecture)  # no tuple became a list
    assert values["format"] == FORMAT == 3 and values["library_version"] == __version__
    assert values["class_names"] == ["Ameise", "пчела", "cow 3"] and values["metrics"] == {"AP": 0.58, "of": "val"}
    assert values["architecture"]["anchors"]["sizes"] == [16, 32, 64, 128, 256.5]
    assert "spacing" not in values["architecture"]["anchors"]["compat"]
    assert values["thresholds"] == {"пчела": 0.3125, "cow 3": 0.7} and values["scale"] == 0.8


def test_without_the_network(full_spec):
    """As who has no torch reads the card of an exported file."""
    spec = ModelSpec.from_dict(plain(full_spec), network=False)
    assert spec == replace(full_spec, architecture=None, loss=None)
    assert ModelSpec.from_dict(changed(plain(full_spec), "architecture", ABSENT), network=False) == spec
    assert ModelSpec.from_dict(plain(spec), network=False) == spec


def test_what_is_optional(full_spec):
    bare = replace(full_spec, thresholds={}, scale=None, loss=None)
    values = plain(bare)
    assert not {"thresholds", "scale", "loss"} & values.keys() and ModelSpec.from_dict(values) == bare
    assert ModelSpec.from_dict(changed(values, "metrics", ABSENT)).metrics == {}
    assert isinstance(replace(full_spec, scale=2).scale, float)


def test_entries_that_are_not_of_the_record_are_left_alone(full_spec):
    assert ModelSpec.from_dict({**plain(full_spec), "weights_sha256": ["0"], "note": None}) == full_spec


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name):
    spec = ModelSpec(("a",), architecture=PRESETS[name])
    assert ModelSpec.from_dict(plain(spec)) == spec


@pytest.mark.parametrize("network", [True, False])
def test_before_compat_was_a_group(full_spec, network):
    """Earlier folders of format 2 have its fields beside the others, the settled spacing of the anchors included."""
    values = plain(full_spec)
    for part in (values["preprocess"], values["postprocess"], values["architecture"]["anchors"]):
        part |= part.pop("compat")
    values["architecture"]["anchors"]["spacing"] = []
    values["format"] = 2
    assert ModelSpec.from_dict(values, network=network) == (
        full_spec if network else replace(full_spec, architecture=None, loss=None)
    )
    with pytest.raises(UserError, match=r"preprocess.compat.channels: expected RGB or BGR, got 'GBR'"):
        ModelSpec.from_dict(changed(values, "preprocess__channels", "GBR"), network=network)


def test_settled_spacing_in_a_group_of_format_2(full_spec):
    values = {**plain(full_spec), "format": 2}
    values["architecture"]["anchors"]["compat"]["spacing"] = []
    assert ModelSpec.from_dict(values) == full_spec


@pytest.mark.parametrize(("rounded", "rounding"), [(True, "corners"), (False, "none")])
def test_rounding_of_format_1(full_spec, rounded, rounding):
    values = plain(full_spec)
    del values["architecture"]["anchors"]["compat"]
    values["architecture"]["anchors"]["rounded"] = rounded
    anchors = replace(full_spec.architecture.anchors, compat=LatticeCompat(rounding=rounding))
    assert ModelSpec.from_dict(values).architecture == replace(full_spec.architecture, anchors=anchors)


@pytest.mark.parametrize("values", [[], 3, None, {}, {"format": "1"}, {"format": None}, {"format": True}])
def test_no_record(values):
    with pytest.raises(UserError, match=r"x\.json is not a model's configuration: it has no format version"):
        check_version(values, "x.json")


@pytest.mark.parametrize("version", [0, -1, 1.0, math.inf, math.nan, [3]])
def test_versions_that_are_none(version):
    with pytest.raises(UserError, match="it has no format version"):
        check_version({"format": version}, "x.json")


def test_a_newer_format(full_spec):
    newer = {**plain(full_spec), "format": FORMAT + 1, "library_version": "7.8.9"}
    message = r"x\.json was written by retinanet 7\.8\.9 in format 4; this is .* reads up to format 3\. Upgrade the p"
    with pytest.raises(UserError, match=message):
        check_version(newer, "x.json")
    for version in (1, 2, 3):
        assert check_version({"format": version}, "x.json") == {"format": version}


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        ("architecture__dilation", 2, "unknown option architecture.dilation"),
        ("architecture__anchors__angles", [0], "unknown option architecture.anchors.angles"),
        ("architecture__anchors__compat__angles", [0], "unknown option architecture.anchors.compat.angles"),
        ("architecture__anchors__compat", 3, "architecture.anchors.compat: expected names with values, got 3"),
        ("preprocess__gamma", 2, "unknown option preprocess.gamma"),
        ("postprocess__soft", True, "unknown option postprocess.soft"),
        ("preprocess", ABSENT, "it has no preprocess"),
        ("postprocess", None, "it has no postprocess"),
        ("architecture", ABSENT, "it has no architecture"),
        ("class_names", ABSENT, "it has no class_names"),
        ("architecture", [1], r"architecture: expected names with values, got \[1\]"),
        ("architecture__coder", [1, 2], r"architecture.coder: expected names with values, got \[1, 2\]"),
        ("architecture__channels", "many", "architecture.channels: expected a whole number, got 'many'"),
        ("architecture__channels", 64.0, "architecture.channels: expected a whole number, got 64.0"),
        ("architecture__anchors__sizes", 32, "architecture.anchors.sizes: expected a list of numbers, got 32"),
        ("architecture__anchors__sizes", [8, "x"], r"architecture.anchors.sizes\[1\]: expected a number, got 'x'"),
        ("architecture__anchors__ratios", [[1]], r"architecture.anchors.ratios\[0\]: expected a number, got \[1\]"),
        ("architecture__anchors__strides", [8.5] * 5, r"architecture.anchors.strides\[0\]: expected a whole number"),
        ("architecture__coder__std", [1, 1], r"architecture.coder.std: expected a list of 4 numbers, got \[1, 1\]"),
        ("architecture__coder__std", [1, 1, 1, 0], "std and clamp of the box coder are above 0"),
        ("architecture__coder__clamp", -1, "std and clamp of the box coder are above 0"),
        ("postprocess__score", "high", "postprocess.score: expected a number, got 'high'"),
        ("postprocess__score", math.inf, "postprocess.score: expected a number, got inf"),
        ("postprocess__score", 10**400, "postprocess.score: expected a number, got 1000"),
        ("architecture__norm_eps", "small", "architecture.norm_eps: expected a number, got 'small'|norm_eps: expected"),
        (
            "architecture__anchors__compat__rounding",
            "up",
            "compat.rounding: expected none or corners or cell, got 'up'",
        ),
        ("preprocess__compat__channels", "GBR", "preprocess.compat.channels: expected RGB or BGR, got 'GBR'"),
        ("postprocess__compat__clip", "never", "compat.clip: expected before or after or half, got 'never'"),
        ("preprocess__short", 0, "0 < short <= long, got short 0"),
        ("preprocess__long", 10**30, "long, multiple and margin of images are at most 1000000 pixels, got 1000"),
        ("preprocess__multiple", 10**30, "long, multiple and margin of images are at most 1000000 pixels, got 1000"),
        (
            "preprocess__compat__margin",
            10**30,
            "long, multiple and margin of images are at most 1000000 pixels, got 1000",
        ),
        ("architecture__p6_from", "C6", "architecture.p6_from: expected C5 or P5, got 'C6'"),
        ("architecture__norm", "frosty", "architecture.norm: expected frozen or batch or group, got 'frosty'"),
        ("architecture__channels", 10**30, "1 to 4096 channels"),
        ("architecture__channels", 0, "1 to 4096 channels"),
        ("architecture__depth", 10**9, "0 to 32 hidden convolutions in a tower, got channels 64 and depth 1000000000"),
        ("architecture__anchors__scales", [1.0] * 501, r"at most 1000 anchors \(ratios \* scales\), got 1002"),
        ("thresholds", [0.5, 0.5, 0.5], r"thresholds is \[0.5, 0.5, 0.5\], expected a score per class name"),
        ("thresholds", {"Biene": 0.5}, "threshold for 'Biene'; the classes of the model are Ameise, пчела, cow 3"),
        ("thresholds__Ameise", 1.5, "threshold of 'Ameise' is 1.5, expected a number from 0 to 1"),
        ("thresholds__Ameise", math.nan, "threshold of 'Ameise' is nan"),
        ("thresholds__Ameise", True, "threshold of 'Ameise' is True"),
        ("thresholds__Ameise", "0.5", "threshold of 'Ameise' is '0.5'"),
        ("metrics", [1], r"metrics is \[1\], expected names with values"),
        ("class_names", "cell", "class_names is not a list of names"),
        ("class_names", [], "class_names is not a list of names"),
        ("class_names", ["a", 3], "class_names is not a list of names"),
        ("class_names", ["a", ["b"]], "class_names is not a list of names"),
        *(("scale", value, "scale is .*expected a number above 0") for value in (0, -1, True, "0.8", [0.8])),
        *(("scale", value, "scale is .*expected a number above 0") for value in (math.inf, math.nan, 10**400)),
    ],
)
def test_what_is_refused(full_spec, path, value, match):
    with pytest.raises(UserError, match=match):
        ModelSpec.from_dict(changed(plain(full_spec), path, value))


def places(values, path=()):
    """The path of every entry, at any depth."""
    entries = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in entries:
        yield (*path, key)
        yield from places(value, (*path, key))


@pytest.mark.parametrize("network", [True, False])
@pytest.mark.parametrize(
    "value",
    [
        *(ABSENT, None, True, "x", "", [], {}, [[1]], [None], ["x"], [{}], {"a": {}}, {"": 0}, [[[[]]]]),
        *(-1, 0, 1, 0.5, 2**31, 10**30, 10**400, 1e300, 1e-320, math.inf, -math.inf, math.nan),
    ],
    ids=lambda value: "absent" if value is ABSENT else repr(value)[:20],
)
def test_whatever_stands_in_any_entry(full_spec, value, network):
    """Either it is refused in words, or the record that comes of it can be written and read again."""
    whole = plain(full_spec)
    paths = [path for path in places(whole) if not (value is ABSENT and isinstance(path[-1], int))]
    assert len(paths) > 50
    accepted = refused = 0
    for path in paths:
        values = changed(whole, path, value)
        try:
            spec = ModelSpec.from_dict(check_version(values, "x.json"), network=network)
        except UserError as error:
            assert str(error)
            refused += 1
            continue
        accepted += 1
        again = ModelSpec.from_dict(plain(spec), network=network)
        assert plain(again) == plain(spec) or (isinstance(value, float) and math.isnan(value)), path
        hash((spec.class_names, spec.preprocess, spec.postprocess, spec.architecture))
    assert refused, "some entry needs another value than this"
    assert accepted, "some entry is not of the record or may be anything"


@pytest.mark.parametrize(
    ("changes", "classes"),
    [
        ({"channels": 4096, "depth": 32}, 1),
        ({"channels": 4096, "anchors": AnchorLattice(scales=(1.0,) * 333)}, 100),
        ({}, 10**9),
        ({}, 10**400),
    ],
    ids=["wide and deep", "wide with many anchors", "classes", "more classes"],
)
def test_absurd_networks_are_refused_before_memory_is_taken(changes, classes):
    with pytest.raises(UserError, match="pyramid and heads would have more than 1,000,000,000 weights: "):
        replace(Architecture(backbone="test_resnet"), **changes).build(classes)


def test_the_largest_real_networks_are_not_absurd():
    """Ten thousand classes at the paper's width; on the meta device, which takes no memory."""
    import torch

    with torch.device("meta"):
        heads = Architecture(backbone="test_resnet").build(10_000).heads
    assert heads.cls.output.out_channels == 90_000


def test_records_are_complete(full_spec):
    """A part that is missing entries takes their defaults; none is dropped on the way."""
    values = {**plain(full_spec), "preprocess": {}, "postprocess": {}, "architecture": {}}
    spec = ModelSpec.from_dict(values)
    assert (spec.preprocess, spec.postprocess, spec.architecture) == (Preprocess(), Postprocess(), Architecture())
    nested = json.loads(json.dumps(asdict(full_spec.preprocess)))
    assert plain(full_spec)["preprocess"] == nested and not re.search("settled", json.dumps(nested))
