"""Recipes: what is minimised, how, and on which views of the images, under one name.

The defaults of the options are the recipe ``default``, see ``docs/results/recipe.md``; the others name what they change
of it. The network is the preset's, whatever the recipe; the ResNets are the paper's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retinanet.errors import UserError, suggest
from retinanet.losses.config import CLASSIC
from retinanet.plain import find_differences, with_changes

_SGD = {"optimizer": "sgd", "schedule": "steps", "clip": 0.0, "ema": 0.0}

RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "default": {},
    # Lin et al., section 4 and 5. Warm-up is Detectron's, which gave the paper's numbers.
    "paper": {
        "loss": {**find_differences(CLASSIC), "forced": "off"},
        "optim": {**_SGD, "warmup": 500},
        "augment": {"hflip": 0.5},
    },
    # torchvision's first RetinaNet and its reference script; that drops the rate a little earlier, at 16 and 22 of 26.
    "torchvision": {
        "loss": {**find_differences(CLASSIC), "box": "l1", "normaliser": "image"},
        "optim": {**_SGD, "warmup": 1000},
        "augment": {"hflip": 0.5},
    },
}

VOTES = {"default": 0.65}  # of new models, by recipe; see Postprocess.vote


def find_recipe(name: str) -> dict[str, dict[str, Any]]:
    """What a recipe changes of the default options, by group.

    Raises:
        UserError: there is no recipe of that name.
    """
    if name not in RECIPES:
        raise UserError(f"recipe: there is none called {name!r}{suggest(name, RECIPES)} Expected {', '.join(RECIPES)}")
    return RECIPES[name]


def follow_recipe(name: str, groups: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The groups of options under a recipe: one that was left out is the recipe's, one that was given is as given.

    Args:
        name: of the recipe.
        groups: the options as they came, by the name of their group.
        defaults: what each is when it is left out, the very object.
    """
    recipe = find_recipe(name)
    return {
        group: with_changes(value, recipe.get(group, {}), group) if value is defaults[group] else value
        for group, value in groups.items()
    }
