"""Frozen, validated settings, and the presets that fill them.

Every default of the project lives here, once. A preset is a TOML file in `configs/presets/` (or anywhere, given by its
path) that names what it changes; `extends = "other"` starts from another preset instead of from the defaults. Tables
are merged key by key, lists replaced whole.
"""

import difflib
import json
import tomllib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from core.errors import SettingsError

PRESETS_DIRECTORY = Path(__file__).resolve().parent.parent / "configs" / "presets"
DEFAULT_PRESET = "final"
MAX_LEVEL = 6

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Iterations = Annotated[int, Field(ge=1, le=100_000)]
Precision = Literal["auto", "float32", "bfloat16"]
NetworkName = Literal["auto", "vgg19", "vgg19-oxford", "compact"]
Colour = Literal["style", "content", "matched", "histogram", "palette"]
Layers = Literal["auto"] | Annotated[tuple[str, ...], Field(min_length=1)]


class _Frozen(BaseModel):
    """Settings can't be changed after validation, and a key that nobody knows is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class NoiseLevel(_Frozen):
    """One level of the structured noise: a field of coloured spots under a Gaussian envelope.

    Exactly one of `spots`, `grain` and `constant` says how large its spots are.
    """

    spots: Annotated[float, Field(gt=0, le=8192)] | None = None
    """Number of spots along the shorter side: the same look at every size of picture."""
    grain: Annotated[float, Field(gt=0, le=4096)] | None = None
    """Size of a spot in pixels of the finest level: the same texture at every size of picture."""
    constant: bool = False
    """One random colour for the whole picture (the envelope still shapes it)."""
    centre: Share = 0.3
    """Amplitude at the centre of the picture: the share of the content that the spots replace."""
    edge: Share = 0.3
    """Amplitude far from the centre."""
    spread: Annotated[float, Field(gt=0, le=10)] = 0.3
    """Standard deviation of the Gaussian envelope between `centre` and `edge`, as a share of each side."""
    source: Literal["style", "normal"] = "style"
    """Where the colours come from: the style's own pixels, randomly permuted, or a normal distribution."""

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if (self.spots is not None) + (self.grain is not None) + self.constant != 1:
            raise ValueError("a noise level needs exactly one of: spots, grain, constant = true")
        return self


class NoiseSettings(_Frozen):
    """The structured noise of the starting picture; without levels there is none."""

    strength: Share = 0.95
    """Multiplies the amplitude of every level."""
    gradient_weight: Share = 1.0
    """How strongly edges of the content keep the noise away: 0 not at all, 1 by the inverse of the local gradient."""
    levels: Annotated[tuple[NoiseLevel, ...], Field(max_length=16)] = ()


class StyleSettings(_Frozen):
    """How one of the styles counts."""

    weight: Weight = 1.0
    """Against the other styles; only the proportions matter."""
    scale: Annotated[float, Field(ge=0.25, le=4)] = 1.0
    """How much larger than usual the style's features become; 0.5 makes them half as large."""


class LossSettings(_Frozen):
    """What is minimised: the sum over all levels of content, style and total variation."""

    content_weight: Weight = 0.005
    style_weight: Weight = 1.0
    tv_weight: Weight = 0.0
    """Weight of the total variation (smoothness); 0 leaves it out."""
    level_weights: Annotated[tuple[Weight, ...], Field(min_length=1, max_length=MAX_LEVEL + 1)] = (1.0,)
    """From level 0 (coarsest) up; the last one holds for all finer levels."""
    protect_weight: Weight = 20.0
    """How many times more the content counts inside a protected region."""
    content_layers: Layers = "auto"
    style_layers: Layers = "auto"
    missing_layers: Literal["error", "deepest"] = "error"
    """When the network lacks a layer named here: refuse, or take the deepest that it has and say so."""
    normalisation: Literal["target", "gatys"] = "target"
    """`target`: each term is relative to its target, so weights hold for all networks and sizes. `gatys`: as in the
    2015 paper, 1/2 Σ (F − P)² and 1/(4N²M²) Σ (G − A)², on the scale of pixel values 0 to 255."""

    def level_weight(self, level: int) -> float:
        """Weight of one level; `level` counts from 0, the coarsest."""
        return self.level_weights[min(level, len(self.level_weights) - 1)]


class OptimizerSettings(_Frozen):
    """How the picture is optimised."""

    name: Literal["lbfgs", "adam"] = "lbfgs"
    schedule: Literal["coarse-first", "joint"] = "coarse-first"
    """`coarse-first`: level 0 alone, then each finer level joins, all of them at the end; `joint`: all levels from the
    first iteration. The objective at the end is the same."""
    iterations: Iterations = 60
    """Iterations of the last stage, in which all levels are optimised together, at most (see `tolerance`)."""
    coarse_iterations: Iterations = 60
    """Iterations of each earlier stage (schedule `coarse-first`), at most."""
    level_iterations: Annotated[tuple[Iterations, ...], Field(max_length=MAX_LEVEL + 1)] = ()
    """Iterations of the stage of each level, from level 0 up, in place of the two numbers above; the last one holds for
    all finer stages."""
    kept_detail: Share = 0.5
    """How much of the starting picture's fine detail a finer stage adds to what the stage before it found."""
    tolerance: Annotated[float, Field(ge=0, lt=1)] = 0.03
    """A stage ends when ten iterations lowered its loss by less than this share; 0: after all its iterations."""
    history: Annotated[int, Field(ge=1, le=100)] = 10
    """Pairs of steps and gradient changes that L-BFGS remembers."""
    step: Annotated[float, Field(gt=0, le=1)] = 0.02
    """Root mean square by which the first L-BFGS step moves the picture; Adam's learning rate."""
    parametrisation: Literal["sigmoid", "clamp", "none"] = "sigmoid"
    """What keeps the picture in [0, 1]: the sigmoid of a free variable, clamping after each step, or nothing."""
    preconditioning: Annotated[float, Field(ge=0, le=2)] = 0.5
    """Exponent p of the frequency weighting (f + 2/size)^(−p) of the variable (sigmoid only); 0 leaves it out."""
    fine_preconditioning: Annotated[float, Field(ge=0, le=2)] = 0.35
    """The same in stages that go on from a coarser one, which has found the coarse structure already."""


class Settings(_Frozen):
    """Everything that, together with the pictures, determines a result."""

    title: str = ""
    description: str = ""
    levels: Annotated[int, Field(ge=0, le=MAX_LEVEL)] = 1
    """The finest level L: the shorter side is 256·2^L pixels."""
    all_levels: bool = True
    """Sum the loss over all levels 0…L (the pyramid), or take it at level L alone (classical)."""
    network: NetworkName = "auto"
    pooling: Literal["max", "average"] = "max"
    padding: Literal["replicate", "reflect", "zeros"] = "replicate"
    """What convolutions see beyond the border of the picture; `zeros` (as in VGG) leaves a frame."""
    precision: Precision = "auto"
    """Arithmetic inside the network; `auto` takes bfloat16 where the device computes it fast."""
    start: Literal["content", "content+noise", "noise", "white-noise", "style", "image"] = "content+noise"
    """The starting picture: content, with structured noise, the noise alone, uniform random pixels, the style, or a
    picture given with the run."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    max_memory: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Memory that the run may use, in GiB (the whole process on a CPU, the device's on a GPU); none: a share of all."""
    styles: Annotated[tuple[StyleSettings, ...], Field(max_length=16)] = ()
    """Weight and scale of each style, in their order; a style beyond the list has the defaults."""
    colour: Colour = "style"
    """Whose colours the result has: the style's; the content's own, of which only the luminance is painted; the style's
    recoloured to the content's by mean and covariance (`matched`) or by their whole distribution (`histogram`); or the
    style's and no others (`palette`)."""
    loss: LossSettings = LossSettings()
    noise: NoiseSettings = NoiseSettings()
    optimizer: OptimizerSettings = OptimizerSettings()

    def style(self, number: int) -> StyleSettings:
        """How the style at position `number`, from 0, counts."""
        return self.styles[number] if number < len(self.styles) else StyleSettings()

    def stage_iterations(self) -> tuple[int, ...]:
        """Iterations of every stage of the optimisation, in their order."""
        optimizer = self.optimizer
        staged = self.all_levels and optimizer.schedule == "coarse-first"
        given = optimizer.level_iterations
        if given:
            by_level = [given[min(level, len(given) - 1)] for level in range(self.levels + 1)]
        else:
            by_level = [optimizer.coarse_iterations] * self.levels + [optimizer.iterations]
        return tuple(by_level) if staged else (by_level[-1],)

    def changed(self, changes: Mapping[str, Any]) -> "Settings":
        """These settings with `changes` (a nested mapping, as from TOML) merged in and validated.

        Raises:
            SettingsError: A key or a value is not allowed.
        """
        return parse(_merged(self.model_dump(mode="json"), changes))


@dataclass(frozen=True)
class Preset:
    """A preset's name and what it says of itself."""

    name: str
    title: str
    description: str
    path: Path


def parse(data: Mapping[str, Any]) -> Settings:
    """Validates a nested mapping into settings.

    Raises:
        SettingsError: Names the first wrong key and, for an unknown key, the closest known one.
    """
    try:
        return Settings.model_validate_json(json.dumps(data))
    except ValidationError as error:
        raise _explained(error) from None
    except (TypeError, ValueError) as error:
        raise SettingsError(f"these settings can't be understood: {error}") from None


def load(preset: str | Path = DEFAULT_PRESET, changes: Mapping[str, Any] | None = None) -> Settings:
    """Settings of a preset (its name, or the path of a TOML file) with `changes` merged in.

    Raises:
        SettingsError: No such preset, a file that is not TOML, or a key or value that is not allowed.
    """
    return parse(_merged(_read_chain(preset), changes or {}))


def presets(directory: Path = PRESETS_DIRECTORY) -> tuple[Preset, ...]:
    """The presets that ship with the project, by name."""
    found = []
    for path in sorted(directory.glob("*.toml")):
        settings = load(path)
        found.append(Preset(path.stem, settings.title, settings.description, path))
    return tuple(found)


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """`["loss.content_weight=0.01", "optimizer.name=adam"]` as a nested mapping; values are TOML, bare words strings.

    Raises:
        SettingsError: An assignment without a key or an equals sign.
    """
    changes: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not all(key.strip().split(".")):
            raise SettingsError(f"'{assignment}' is not of the form key=value", "Write e.g. loss.content_weight=0.01")
        nested: dict[str, Any] = {}
        inner = nested
        *tables, last = key.strip().split(".")
        for table in tables:
            inner = inner.setdefault(table, {})
        inner[last] = _toml_value(value.strip())
        changes = _merged(changes, nested)
    return changes


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        below = merged.get(key)
        both_tables = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[key] = _merged(below, value) if both_tables else value  # type: ignore[arg-type]
    return merged


def _read_chain(preset: str | Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The preset's own keys over those of the presets that it extends."""
    path = _preset_path(preset, beside=seen[-1].parent if seen else None)
    if path in seen:
        raise SettingsError(f"preset '{path.stem}' extends itself", "Remove one of the extends = … lines")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the preset file '{path.name}' can't be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"the preset file '{path.name}' is not valid TOML: {error}") from None
    parent = data.pop("extends", None)
    if parent is None:
        return data
    # A preset introduces itself; it doesn't inherit what its parent says of itself.
    inherited = {
        key: value for key, value in _read_chain(parent, (*seen, path)).items() if key not in ("title", "description")
    }
    return _merged(inherited, data)


def _preset_path(preset: str | Path, beside: Path | None = None) -> Path:
    if str(preset).endswith(".toml"):
        path = Path(preset)
        if beside is not None and not path.is_absolute():
            path = beside / path
        if not path.is_file():
            raise SettingsError(f"there is no preset file '{preset}'")
        return path.resolve()
    path = PRESETS_DIRECTORY / f"{preset}.toml"
    if path.name != f"{preset}.toml" or not path.is_file():
        names = [known.stem for known in sorted(PRESETS_DIRECTORY.glob("*.toml"))]
        raise SettingsError(f"there is no preset '{preset}'", _suggestion(str(preset), names))
    return path.resolve()


def _suggestion(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"Did you mean '{close[0]}'?" if close else f"Known are: {', '.join(known)}"


def _explained(error: ValidationError) -> SettingsError:
    """The first complaint of pydantic as one line for a person."""
    first = error.errors(include_url=False)[0]
    location = [part for part in first["loc"] if isinstance(part, str | int)]
    key = ".".join(str(part) for part in location) or "settings"
    if first["type"] == "extra_forbidden":
        return SettingsError(f"unknown setting '{key}'", _suggestion(str(location[-1]), _known_keys(location[:-1])))
    given = "" if isinstance(first["input"], Mapping) else f" (given: {first['input']!r})"
    return SettingsError(f"setting '{key}': {first['msg'].removeprefix('Value error, ')}{given}")


def _known_keys(location: list[str | int]) -> list[str]:
    """The keys allowed in the table at `location`."""
    model: type[BaseModel] = Settings
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            model = _model_inside(model.model_fields[part].annotation) or model
    return list(model.model_fields)


def _model_inside(annotation: Any) -> type[BaseModel] | None:
    """The settings model that an annotation like `tuple[NoiseLevel, ...]` holds."""
    arguments = typing.get_args(annotation)
    if arguments:
        return next((found for inner in arguments if (found := _model_inside(inner))), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
