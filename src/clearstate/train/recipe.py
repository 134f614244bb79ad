"""Recipes: one YAML file describes a training run, checked in full before anything starts.

    recipe = load_recipe("recipes/live.yaml", ["optimiser.lr=1e-3", "run=runs/second"])

A key that does not exist is an error that names the nearest one that does; so is a value of the wrong type.
"""

import dataclasses
import difflib
import os
import re
import types
import typing
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, TypeAdapter, ValidationError

Above0 = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class RecipeError(ValueError):
    """A recipe that cannot be run; the message says which line to change."""


class _Loader(yaml.SafeLoader):
    """YAML in which 2024-01-01 is a word, such as the name of a folder, and not a date."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in kinds if tag != "tag:yaml.org,2002:timestamp"]
    for first, kinds in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """Which model, and what differs from its preset."""

    name: str
    config: dict[str, Any] = field(default_factory=dict)  # fields of the model's config dataclass
    start: str | None = None  # weights to start from: a shipped name, or a folder as best/; more tensors may be there


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """Where the audio comes from: `sources` to be mixed, a known `corpus` as it is, or folders of pairs."""

    sources: dict[str, Any] = field(default_factory=dict)  # fields of clearstate.data.SourceSpec
    mixture: dict[str, Any] = field(default_factory=dict)  # of MixtureConfig, SeparationConfig or ExtensionConfig
    corpus: str | None = None  # its training part
    noisy: str | None = None
    clean: str | list[str] | None = None  # for separation a folder for each voice, and no noisy
    pcs: Literal["rms", "peak", "none"] | None = None  # stretch the contrast of the target; what becomes of its level
    seconds: Above0 = 3.0  # length of a training item
    items: Count = 8000  # mixtures in an epoch (a paired corpus has the length it has)
    batch: Count = 8  # items per process and step
    workers: Annotated[int, Field(ge=0)] = 1  # decoding processes; 0 decodes between the steps
    prefetch: Count = 4  # batches kept ready by each worker


@dataclass(frozen=True, kw_only=True)
class LossRecipe:
    """Weights of the terms of the loss; 0 leaves a term out and costs nothing. Formulas: clearstate.losses."""

    magnitude: Weight = 0.0  # compressed magnitude, squared
    complex: Weight = 0.0  # compressed complex spectrum, squared
    log_magnitude: Weight = 0.0  # log(1 + magnitude), absolute
    multi_resolution: Weight = 0.0  # compressed magnitude at several window lengths
    perceptual: Weight = 0.0  # what PESQ measures; 16 kHz, beside terms that hold the level
    log_spectral: Weight = 0.0  # log-spectral distance over the band that the input lacks
    added_error: Weight = 0.0  # per dB of SNR below the input's; both for models that extend the bandwidth
    log_error: Weight = 0.0  # per dB; keeps the level, defined for silent targets
    phase: Weight = 0.0  # anti-wrapping: instantaneous phase + group delay + instantaneous frequency
    consistency: Weight = 0.0  # of the predicted spectrum; needs forward(noisy, with_spectrum=True)
    l1: Weight = 0.0  # waveform
    si_sdr: Weight = 0.0  # per dB
    snr_pit: Weight = 0.0  # per dB; several sources, best assignment
    own: Weight = 0.0  # the model's own training_loss, by itself: what a diffusion model is trained with
    metric: Weight = 0.0  # discriminator that predicts PESQ
    metric_sees: Literal["output", "prediction"] = "output"  # spectrum of the waveform, or the one that became it
    distill: Weight = 0.0  # distance from `teacher`'s output
    distill_features: Weight = 0.0  # distance of the last block from the mean of `teacher`'s blocks
    teacher: str | None = None  # a shipped name, or a folder with weights and config
    distill_ramp: Share = 0.1  # share of the run over which both grow to their weights
    n_fft: Count = 512  # samples, for all spectral terms but multi_resolution
    hop: Count = 256
    exponent: Annotated[float, Field(gt=0, le=1)] = 0.3


@dataclass(frozen=True, kw_only=True)
class OptimiserRecipe:
    """AdamW, or Muon for the matrices; norms, biases and the A_log and D of state-space layers are not decayed."""

    name: Literal["adamw", "muon"] = "adamw"
    lr: Above0 = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip: Above0 = 5.0  # largest norm of the gradient
    accumulate: Count = 1  # batches per step
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.999  # decay per step of the averaged weights


@dataclass(frozen=True, kw_only=True)
class ScheduleRecipe:
    """How long, and the learning rate on the way: linear warm-up, then down to `floor` times the peak.

    With both limits the run ends at the first; the schedule follows whichever is further along.
    """

    max_steps: Count | None = None
    max_minutes: Above0 | None = None  # time spent in training, over all resumptions
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.02  # share of the run
    floor: Annotated[float, Field(gt=0, le=1)] = 0.01  # share of the peak
    fall: Literal["cosine", "exponential"] = "cosine"  # exponential: x0.99 an epoch for 200 epochs is floor: 0.134
    hold: Share = 0.0  # share of the run in which the model's blocks learn alone: what is around them came with `start`


@dataclass(frozen=True, kw_only=True)
class ValidRecipe:
    """Held-out pairs, scored with the averaged weights. Never the test set."""

    corpus: str | None = None  # its validation part; none and no folders: no validation, the last weights are kept
    noisy: str | None = None
    clean: str | list[str] | None = None  # separation: a folder for each voice; extension: wide files; no noisy
    items: Count | None = None  # spread evenly over the folder; default all
    every_minutes: Above0 | None = 15.0
    every_steps: Count | None = None
    workers: Count = 2  # scoring processes
    # the metric that chooses the weights in best/
    best: Literal["pesq", "stoi", "si_sdr", "snr", "lsd", "lsd_high"] = "pesq"
    pictures: bool = True
    allow_test_set: bool = False


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training run."""

    run: str  # folder of checkpoints, logs and weights
    audio: str = "$CLEARSTATE_DATA"  # folder that the paths in data and valid are relative to
    model: ModelRecipe
    data: DataRecipe
    loss: LossRecipe
    optimiser: OptimiserRecipe = field(default_factory=OptimiserRecipe)
    schedule: ScheduleRecipe = field(default_factory=ScheduleRecipe)
    valid: ValidRecipe = field(default_factory=ValidRecipe)
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    precision: Literal["float32", "bfloat16"] = "float32"  # bfloat16: autocast; losses and recurrences stay float32
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    devices: Count = 1  # per machine; under torchrun its process count is taken
    threads: Count | None = None  # of each process; default: torch's
    checkpoint_minutes: Above0 = 5.0
    log_steps: Count = 20  # steps averaged in one line of log.jsonl
    tensorboard: bool = False


def load_recipe(path: str | Path, overrides: typing.Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `key=value` overrides (dotted keys; YAML values, but for keys that hold text).

    Raises:
        RecipeError: naming the file or override, the key, and what would be right.
    """
    path = Path(path)
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise RecipeError(f"no recipe at {path}: give the path of a YAML file such as recipes/live.yaml") from None
    except OSError as error:
        raise RecipeError(
            f"{path} cannot be read ({error.strerror}): give a YAML file such as recipes/live.yaml"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise RecipeError(f"{path} is not YAML in UTF-8: {_line(error)}") from error
    if not isinstance(tree, dict):
        raise RecipeError(
            f"{path} must hold keys and values (run:, model:, data:, loss: ...), found {type(tree).__name__}"
        )
    for override in overrides:
        set_dotted(tree, override)
    return recipe_from(tree, str(path))


def recipe_from(tree: dict[str, Any], origin: str = "recipe") -> Recipe:
    """Check a tree of plain values and build the recipe; raises RecipeError."""
    check_keys(tree, Recipe, origin)
    try:
        recipe = TypeAdapter(Recipe).validate_python(tree)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}, got {e['input']!r:.100}" for e in error.errors()]
        raise RecipeError(f"{origin} does not check: {'; '.join(lines[:5])}") from None
    check_sense(recipe, origin)
    return dataclasses.replace(
        recipe,
        run=os.path.expanduser(recipe.run),
        model=dataclasses.replace(recipe.model, start=_at_home(recipe.model.start)),
        loss=dataclasses.replace(recipe.loss, teacher=_at_home(recipe.loss.teacher)),
    )


def _at_home(path: str | None) -> str | None:
    return path and os.path.expanduser(path)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def set_dotted(tree: dict[str, Any], override: str) -> None:
    r"""Put one `a.b=value` into a tree of plain values.

    Where the recipe wants text, such as a path, the value is taken as it is: `run=1e3`, `audio=C:\x: y`. `null` is
    still none, `[a, b]` a list and "quoted" unquoted, where they may be. Elsewhere it is YAML, with 1e-3 a number.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"override {override!r} is not of the form key=value, for instance optimiser.lr=1e-3")
    kinds = declared(key)
    value = as_text(text, kinds) if str in kinds else as_yaml(text, override)
    *sections, last = key.split(".")
    for section in sections:
        inner = tree.setdefault(section, {})
        if inner is None:
            inner = tree[section] = {}
        if not isinstance(inner, dict):
            raise RecipeError(f"override {override!r}: {section} is a value ({inner!r}), not a section")
        tree = inner
    tree[last] = value


def declared(key: str) -> tuple[Any, ...]:
    """The types that the value of a dotted key may have; none where the recipe leaves that open."""
    kind: Any = Recipe
    for part in key.split("."):
        if kind == dict[str, Any] and key.startswith("data.sources."):
            from clearstate.data import SourceSpec

            kind = SourceSpec
        if not dataclasses.is_dataclass(kind):
            return ()
        kind = typing.get_type_hints(kind).get(part)
    if kind == tuple[str, ...]:
        return str, list[str]
    is_union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return typing.get_args(kind) if is_union else (kind,)


def as_text(text: str, kinds: tuple[Any, ...]) -> str | list[str] | None:
    """The value of a key that holds text: see `set_dotted`."""
    if not text or (text in ("null", "~") and type(None) in kinds):
        return None
    if text[0] in "'\"" or (text[0] == "[" and list[str] in kinds):
        with suppress(yaml.YAMLError):
            value = yaml.load(text, yaml.BaseLoader)  # in which every scalar is text
            if isinstance(value, (str, list)):
                return value
    return text


def as_yaml(text: str, override: str) -> Any:
    """A value as YAML, with 1e-3 a number, which YAML 1.1 takes for a word."""
    try:
        value = yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise RecipeError(f"override {override!r}: the value is not YAML ({_line(error)})") from None
    is_number = isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value)
    return float(value) if is_number else value


def check_keys(tree: dict[str, Any], cls: type, origin: str, where: str = "") -> None:
    """Raise RecipeError at the first key that `cls` has no field for, with the nearest that it has."""
    fields = typing.get_type_hints(cls)
    for key, value in tree.items():
        if key not in fields:
            raise RecipeError(f"{origin}: unknown key {where + str(key)}" + nearest(str(key), list(fields)))
        if dataclasses.is_dataclass(fields[key]) and isinstance(value, dict):
            check_keys(value, typing.cast(type, fields[key]), origin, f"{where}{key}.")


def nearest(name: str, known: typing.Sequence[str]) -> str:
    """'; did you mean X?' for the closest known name, else the list of all."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(sorted(known))}"


def check_sense(recipe: Recipe, origin: str) -> None:
    """What types cannot say: sections that contradict each other."""
    from clearstate.models import PRESETS

    task = PRESETS[recipe.model.name].task if recipe.model.name in PRESETS else None
    schedule, data, loss, valid = recipe.schedule, recipe.data, recipe.loss, recipe.valid
    if schedule.max_steps is None and schedule.max_minutes is None:
        raise RecipeError(f"{origin}: the run has no end: set schedule.max_steps or schedule.max_minutes")
    if sum(map(bool, (data.sources, data.corpus, data.clean or data.noisy))) != 1:
        raise RecipeError(f"{origin}: set one of data.sources (to be mixed), data.corpus, or data.noisy and data.clean")
    if valid.corpus and valid.clean:
        raise RecipeError(f"{origin}: set either valid.corpus, or valid.noisy and valid.clean")
    for where, section in (("data", data), ("valid", valid)):
        if isinstance(section.clean, list):  # one folder a voice
            if section.noisy or len(section.clean) < 2:
                raise RecipeError(f"{origin}: a list in {where}.clean names a folder for each voice, without noisy")
        elif where == "valid" and section.noisy is None and task == "extend":
            continue  # wide files, narrowed as they are read
        elif (section.noisy is None) != (section.clean is None):
            raise RecipeError(f"{origin}: {where}.noisy and {where}.clean go together; one of the two is missing")
    if not any(value > 0 for name, value in loss_weights(loss).items()):
        raise RecipeError(f"{origin}: every weight in loss is 0: set some of {', '.join(loss_weights(loss))}")
    if (loss.distill + loss.distill_features > 0) != (loss.teacher is not None):
        raise RecipeError(f"{origin}: loss.distill and loss.teacher go together; one of the two is missing")
    if schedule.hold > 0 and recipe.model.start is None:
        raise RecipeError(f"{origin}: schedule.hold keeps what model.start brought, and model.start is not set")


def loss_weights(loss: LossRecipe) -> dict[str, float]:
    """The weights of a loss section by term, without its other settings."""
    settings = {"teacher", "distill_ramp", "metric_sees", "n_fft", "hop", "exponent"}
    return {f.name: getattr(loss, f.name) for f in dataclasses.fields(loss) if f.name not in settings}


def audio_path(recipe: Recipe, path: str) -> Path:
    """A path of the recipe, `~` and $VARIABLES expanded, relative to its audio folder.

    Raises:
        RecipeError: if a variable is not set.
    """
    own = Path(os.path.expandvars(path)).expanduser()
    whole = own if own.is_absolute() else Path(os.path.expandvars(recipe.audio)).expanduser() / own
    if unset := re.search(r"\$\{?(\w+)", str(whole)):
        raise RecipeError(
            f"the recipe reads audio from {whole}, but the variable {unset[1]} is not set: "
            f"export {unset[1]}=FOLDER, or say audio=FOLDER"
        )
    return whole
