"""The tables in docs/reference/recipes.md: presets and fields, from code and docstrings."""

import re
from collections.abc import Iterator
from dataclasses import fields

from splitattn.data.augmentation import Augmentation
from splitattn.training.presets import PRESETS
from splitattn.training.recipe_files import load_recipe
from splitattn.training.recipes import Recipe


def documented_fields(kind: type) -> Iterator[tuple[str, str]]:
    """Names and texts in the list of attributes in a docstring."""
    attributes = (kind.__doc__ or "").partition("Attributes:")[2].partition("Raises:")[0]
    for names, text in re.findall(
        r"^ {8}(\w[\w, ]*): (.+(?:\n {12}.+)*)", attributes, re.MULTILINE
    ):
        for name in names.split(", "):
            yield name, " ".join(text.split())


def recipe_fields() -> str:
    """A list with each field of a recipe and its default, from the docstring."""
    texts = dict(documented_fields(Recipe))
    # Of these, the recipe's docstring says no more than where they are explained.
    texts |= {
        name: text
        for name, text in documented_fields(Augmentation)
        if "`Augmentation`" in texts.get(name, "")
    }
    return "\n".join(f"- `{f.name}` = `{f.default}`: {texts[f.name]}" for f in fields(Recipe))


def presets() -> str:
    """A table of what each preset sets, for `resnest50`."""
    found = {name: load_recipe(name, model="resnest50") for name in PRESETS}
    # Those of detectors and segmenters have pages of their own.
    tasks = ("classification", "distillation")
    recipes = {name: recipe for name, recipe in found.items() if recipe.task in tasks}
    lines = [f"| field | {' | '.join(recipes)} |", f"|---|{'---|' * len(recipes)}"]
    for field in fields(Recipe):
        values = [getattr(recipe, field.name) for recipe in recipes.values()]
        if len(set(values)) > 1:
            cells = (f"`{value}`" if value != field.default else "" for value in values)
            cells = (f"`{values[0]}`", *list(cells)[1:])
            lines.append(f"| `{field.name}` | {' | '.join(cells)} |")
    return "\n".join(lines)
