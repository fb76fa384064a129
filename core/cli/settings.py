"""From arguments to settings: a preset or a picture's recipe, then `--set`, then the options, each over the last."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core import config, dials, steering, sweep
from core.config import DEFAULT_PRESET, Settings
from core.errors import RecipeError, SettingsError
from core.steering import Steer
from core.sweep import Cell

Recipe = Mapping[str, Any]


@dataclass(frozen=True)
class Asked:
    """What the arguments of `stylize` ask for.

    Attributes:
        settings: Of the run; of a sweep, those that its cells vary.
        recipe: What the settings were taken from, if it was a picture.
        steering: Changes of weights to be made again, as the recipe recorded them.
        grid: The cells of a sweep, row by row; empty for one picture.
        notices: What the user should know of all this.
    """

    settings: Settings
    recipe: Recipe | None = None
    steering: tuple[Steer, ...] = ()
    grid: list[list[Cell]] = field(default_factory=list)
    notices: tuple[str, ...] = ()


def for_stylize(arguments: Namespace) -> Asked:
    """Understands the arguments of `stylize`.

    Raises:
        UserError: A preset, a key or a value that isn't allowed; a recipe that can't be repeated.
    """
    recipe = None if arguments.recipe is None else _read(arguments.recipe)
    origin = _preset(arguments) if recipe is None else _of_recipe(recipe, arguments.recipe)
    settings = origin.changed(config.parse_assignments(arguments.set)).changed(_options(arguments))
    settings = settings.changed(_style_options(arguments, settings))
    settings = dials.apply(settings, _given({dial.name: _dial(arguments, dial) for dial in dials.DIALS}))
    if arguments.weights is not None and settings.network == "auto":
        raise SettingsError("--weights does not say of which network they are", "Add --network vgg19 or vgg19-oxford")
    settings, steering, notices = _steered(settings, origin, recipe)
    return Asked(settings, recipe, steering, _grid(arguments, settings), notices)


def _dial(arguments: Namespace, dial: dials.Dial) -> float | None:
    value: float | None = getattr(arguments, f"{dial.name}_strength")
    return value


def _grid(arguments: Namespace, settings: Settings) -> list[list[Cell]]:
    axes = [sweep.axis(text) for text in arguments.sweep]
    if arguments.interpolate is not None:
        axes.append(sweep.interpolation(arguments.interpolate))
    return sweep.grid(settings, axes) if axes else []


def _steered(
    settings: Settings, origin: Settings, recipe: Recipe | None
) -> tuple[Settings, tuple[Steer, ...], tuple[str, ...]]:
    """What becomes of the changes of weights that a recipe recorded.

    The same run makes them again, when it made them. In another one they would come at the wrong time, so it begins
    with the weights that they led to.
    """
    made = () if recipe is None else steering.parse(recipe.get("steering", ()))
    if not made or settings == origin.changed({"max_memory": settings.max_memory}):
        return settings, made, ()
    for steer in made:
        settings = steering.steered(settings, steer.changes)
    return settings, (), ("the weights that the recipe's picture ended with hold from the beginning",)


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
    found = [
        f"{what} than the recipe says: {_shown(now, keys)} instead of {_shown(recipe, keys)}"
        for what, keys in named.items()
        if _at(recipe, keys) != _at(now, keys)
    ]
    # A picture that was made before there were masks says nothing of them, and had none.
    if any(recipe.get("masks") or ()) != any(now["masks"]) or bool(recipe.get("protect")) != now["protect"]:
        found.append("the recipe's picture had other masks: give the same --mask and --protect")
    return found


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
        "level_iterations": None if arguments.iterations is None else [],
    }
    trial = 0 if arguments.sweep or arguments.interpolate is not None else None
    general = {
        "levels": trial if arguments.levels is None else arguments.levels,
        "colour": arguments.colour,
        "network": arguments.network,
        "start": arguments.start if arguments.start_image is None else "image",
        "seed": arguments.seed,
        "max_memory": arguments.max_memory,
    }
    return _given(general) | {"optimizer": _given(optimizer)}


def _style_options(arguments: Namespace, settings: Settings) -> dict[str, Any]:
    """Weights and scales of the styles in their order, over those that the settings have already."""
    weights, scales = arguments.style_weight or [], arguments.style_scale or []
    for name, values in (("--style-weight", weights), ("--style-scale", scales)):
        if len(values) > len(arguments.styles):
            raise SettingsError(f"{name} is given {len(values)} times for {len(arguments.styles)} styles")
    count = max(len(weights), len(scales))
    if not count:
        return {}
    styles = [settings.style(number).model_dump() for number in range(max(count, len(settings.styles)))]
    for number, weight in enumerate(weights):
        styles[number]["weight"] = weight
    for number, scale in enumerate(scales):
        styles[number]["scale"] = scale
    return {"styles": styles}


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
