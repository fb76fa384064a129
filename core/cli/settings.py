"""From arguments to settings: a preset or a picture's recipe, then `--set`, then the options, each over the last."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core import config
from core.config import DEFAULT_PRESET, Settings
from core.errors import RecipeError, SettingsError

Recipe = Mapping[str, Any]


def for_stylize(arguments: Namespace) -> tuple[Settings, Recipe | None]:
    """The settings that the arguments of `stylize` ask for, and the recipe that they began with, if any.

    Raises:
        UserError: A preset, a key or a value that isn't allowed; a recipe that can't be repeated.
    """
    recipe = None if arguments.recipe is None else _read(arguments.recipe)
    origin = _preset(arguments) if recipe is None else _of_recipe(recipe, arguments.recipe)
    settings = origin.changed(config.parse_assignments(arguments.set)).changed(_options(arguments))
    if arguments.weights is not None and settings.network == "auto":
        raise SettingsError("--weights does not say of which network they are", "Add --network vgg19 or vgg19-oxford")
    return settings, recipe


def for_noise(arguments: Namespace) -> Settings:
    """The settings that the arguments of `noise` ask for.

    Raises:
        SettingsError: A preset, a key or a value that isn't allowed, or a preset without noise.
    """
    changes = config.parse_assignments(arguments.set)
    settings = _preset(arguments).changed(changes).changed(_given({"seed": arguments.seed}))
    if not settings.noise.levels:
        raise SettingsError("these settings have no noise", "Choose another --preset; the command presets lists them")
    return settings


def departures(recipe: Recipe, *, now: Recipe) -> list[str]:
    """Why a run with the settings of `recipe` will not give that picture again; `now` is the recipe of this run."""
    named = {
        "the content has another size": ("sizes", "content"),
        "the styles have other sizes": ("sizes", "styles"),
        "the network is another": ("network", "name"),
        "the network's weights are others": ("network", "sha256"),
        "the precision is another": ("precision",),
    }
    return [
        f"{what} than the recipe says: {_shown(now, keys)} instead of {_shown(recipe, keys)}"
        for what, keys in named.items()
        if _at(recipe, keys) != _at(now, keys)
    ]


def _preset(arguments: Namespace) -> Settings:
    return config.load(DEFAULT_PRESET if arguments.preset is None else arguments.preset)


def _read(picture: Path) -> Recipe:
    from core import images  # noqa: PLC0415  (imports PyTorch, for which nobody without a recipe should wait)

    return images.read_recipe(picture)


def _of_recipe(recipe: Recipe, picture: Path) -> Settings:
    """Its settings, with the network that `auto` meant then."""
    recorded = recipe.get("settings")
    if not isinstance(recorded, Mapping):
        raise RecipeError(f"the recipe of {picture.name} has no settings", "Use the file as it was written")
    network = _at(recipe, ("network", "name"))
    try:
        settings = config.parse(recorded)
        return settings.changed({"network": network}) if settings.network == "auto" and network else settings
    except SettingsError as error:
        cause = f"the recipe of {picture.name} is not one that this version can repeat: {error.cause}"
        raise RecipeError(cause, error.remedy) from None


def _options(arguments: Namespace) -> dict[str, Any]:
    optimizer = {
        "name": arguments.optimizer,
        "iterations": arguments.iterations,
        "coarse_iterations": arguments.iterations,
    }
    general = {
        "levels": arguments.levels,
        "network": arguments.network,
        "start": arguments.start if arguments.start_image is None else "image",
        "seed": arguments.seed,
        "max_memory": arguments.max_memory,
    }
    return _given(general) | {"optimizer": _given(optimizer)}


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}


def _at(recipe: Recipe, keys: Sequence[str]) -> Any:
    """What lies there, or None: a recipe comes from a file that anybody may have edited."""
    found: Any = recipe
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _shown(recipe: Recipe, keys: Sequence[str]) -> str:
    found = _at(recipe, keys)
    return f"{found[:12]}…" if keys[-1] == "sha256" and isinstance(found, str) else str(found)
