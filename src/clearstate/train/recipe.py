"""Recipes: a YAML file describes a training run. All of it is checked before the run starts.

    recipe = load_recipe("recipes/live.yaml", ["optimiser.lr=1e-3", "run=runs/second"])

An unknown key is an error that suggests the closest known key. So is a value of the wrong type.
"""

import dataclasses
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

from clearstate.nearest import nearest

Above0 = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class RecipeError(ValueError):
    """An invalid recipe. The message names the key to change."""


class _Loader(yaml.SafeLoader):
    """YAML without dates: 2024-01-01 is a string, such as a folder name."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in kinds if tag != "tag:yaml.org,2002:timestamp"]
    for first, kinds in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """The model, and changes to its preset."""

    name: str
    config: dict[str, Any] = field(default_factory=dict)  # fields of the model's config dataclass
    start: str | None = None  # initial weights: a model name, or a folder such as best/; it may contain more tensors


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """The training audio: `sources` to mix, a known `corpus`, or folders of pairs."""

    sources: dict[str, Any] = field(default_factory=dict)  # fields of clearstate.data.SourceSpec
    mixture: dict[str, Any] = field(default_factory=dict)  # of MixtureConfig, SeparationConfig or ExtensionConfig
    corpus: str | None = None  # a known corpus; its training part is used
    noisy: str | None = None
    clean: str | list[str] | None = None  # for separation one folder per voice, without noisy
    noisy_mixtures: bool = False  # of a separation corpus: those with noise (mix_both)
    pcs: Literal["rms", "peak", "none"] | None = None  # contrast stretching of the target; how to treat its level
    seconds: Above0 = 3.0  # length of a training item
    items: Count = 8000  # mixtures per epoch (a paired corpus has a fixed length)
    batch: Count = 8  # items per process and step
    workers: Annotated[int, Field(ge=0)] = 1  # loader processes; 0 loads in the main process
    prefetch: Count = 4  # batches prepared by each worker


@dataclass(frozen=True, kw_only=True)
class LossRecipe:
    """Weights of the loss terms; 0 disables a term, at no cost. Formulas: clearstate.train.losses."""

    magnitude: Weight = 0.0  # compressed magnitude, squared
    complex: Weight = 0.0  # compressed complex spectrum, squared
    log_magnitude: Weight = 0.0  # log(1 + magnitude), absolute
    multi_resolution: Weight = 0.0  # compressed magnitude at several window lengths
    perceptual: Weight = 0.0  # what PESQ measures; 16 kHz, beside terms that hold the level
    log_spectral: Weight = 0.0  # log-spectral distance over the missing band; extension only
    added_error: Weight = 0.0  # per dB of SNR below the input's; extension only
    log_error: Weight = 0.0  # per dB; sensitive to level, defined for silent targets
    phase: Weight = 0.0  # anti-wrapping: instantaneous phase + group delay + instantaneous frequency
    consistency: Weight = 0.0  # consistency of the predicted spectrum; needs forward(noisy, with_spectrum=True)
    l1: Weight = 0.0  # waveform
    si_sdr: Weight = 0.0  # per dB
    snr_pit: Weight = 0.0  # per dB; several sources, best assignment
    own: Weight = 0.0  # the model's own training_loss, without other terms; for diffusion models
    metric: Weight = 0.0  # discriminator that predicts PESQ
    metric_sees: Literal["output", "prediction"] = (
        "output"  # spectrum of the output waveform, or the predicted spectrum
    )
    metric_start: str | None = None  # folder with initial weights of the discriminator, from `clearstate convert`
    # what magnitude, complex, phase and log_magnitude compare: as metric_sees; auto: prediction if the model has one
    spectra: Literal["auto", "output", "prediction"] = "auto"
    phase_edges: bool = False  # phase: the first bin and frame count undifferenced too, as in SEMamba's code
    # RMS brought to 1: of the noisy item, or of the whole noisy utterance it is cut from; none: levels as they are
    level: Literal["item", "utterance", "none"] = "item"
    distill: Weight = 0.0  # distance from `teacher`'s output
    distill_features: Weight = 0.0  # distance of the last block from the mean of `teacher`'s blocks
    teacher: str | None = None  # a model name, or a folder with weights and config
    distill_ramp: Share = 0.1  # share of the run over which both weights grow
    n_fft: Count = 512  # samples, for all spectral terms but multi_resolution; not for models with their own spectrum
    hop: Count = 256
    exponent: Annotated[float, Field(gt=0, le=1)] = 0.3


@dataclass(frozen=True, kw_only=True)
class OptimiserRecipe:
    """AdamW, or Muon for the matrices; norms, biases and the A_log and D of state-space layers are not decayed."""

    name: Literal["adamw", "muon"] = "adamw"
    lr: Above0 = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip: Above0 = 5.0  # maximum gradient norm
    accumulate: Count = 1  # batches per step
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.999  # decay per step of the averaged weights


@dataclass(frozen=True, kw_only=True)
class ScheduleRecipe:
    """Length and learning rate of a run: linear warm-up, then decay to `floor` times the peak.

    With both limits, the run ends at the first. The schedule follows the one with more progress.
    """

    max_steps: Count | None = None
    max_minutes: Above0 | None = None  # time spent in training, over all resumptions
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.02  # share of the run
    floor: Annotated[float, Field(gt=0, le=1)] = 0.01  # share of the peak
    fall: Literal["cosine", "exponential"] = "cosine"  # exponential: x0.99 an epoch for 200 epochs is floor: 0.134
    hold: Share = 0.0  # share of the run that trains only the blocks; the other parameters come from `start`


@dataclass(frozen=True, kw_only=True)
class ValidRecipe:
    """Validation pairs, scored with the averaged weights. Never the test set."""

    corpus: str | None = None  # its validation part is used; without corpus and folders, best/ has the last weights
    noisy: str | None = None
    clean: str | list[str] | None = None  # separation: one folder per voice; extension: wide files; both without noisy
    noisy_mixtures: bool = False  # as in data
    items: Count | None = None  # number of random pairs; default all
    every_minutes: Above0 | None = 15.0
    every_steps: Count | None = None
    workers: Count = 2  # scoring processes
    # the metric that selects the weights in best/
    best: Literal["pesq", "stoi", "si_sdr", "snr", "lsd", "lsd_high"] = "pesq"
    pictures: bool = True
    allow_test_set: bool = False


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training run."""

    run: str  # folder for checkpoints, logs and weights
    audio: str = "$CLEARSTATE_DATA"  # base folder of the paths in data and valid
    model: ModelRecipe
    data: DataRecipe
    loss: LossRecipe
    optimiser: OptimiserRecipe = field(default_factory=OptimiserRecipe)
    schedule: ScheduleRecipe = field(default_factory=ScheduleRecipe)
    valid: ValidRecipe = field(default_factory=ValidRecipe)
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    precision: Literal["float32", "bfloat16"] = "float32"  # bfloat16: autocast; losses and recurrences stay float32
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    devices: Count = 1  # per machine; torchrun overrides it with its process count
    threads: Count | None = None  # per process; default of torch
    checkpoint_minutes: Above0 = 5.0
    log_steps: Count = 20  # steps per line of log.jsonl
    tensorboard: bool = False


def load_recipe(path: str | Path, overrides: typing.Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `key=value` overrides (dotted keys; values are YAML, except for text keys).

    Raises:
        RecipeError: with the file or override, the key, and the remedy.
    """
    path = Path(path)
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise RecipeError(f"no recipe at {path}: expected a YAML file such as recipes/live.yaml") from None
    except OSError as error:
        raise RecipeError(
            f"{path} cannot be read ({error.strerror}): expected a YAML file such as recipes/live.yaml"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise RecipeError(f"{path} is not YAML in UTF-8: {_line(error)}") from error
    if not isinstance(tree, dict):
        raise RecipeError(
            f"{path} must contain keys and values (run:, model:, data:, loss: ...), got {type(tree).__name__}"
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
        raise RecipeError(f"{origin} is invalid: {'; '.join(lines[:5])}") from None
    check_sense(recipe, origin)
    return dataclasses.replace(
        recipe,
        run=os.path.expanduser(recipe.run),
        model=dataclasses.replace(recipe.model, start=_at_home(recipe.model.start)),
        loss=dataclasses.replace(
            recipe.loss, teacher=_at_home(recipe.loss.teacher), metric_start=_at_home(recipe.loss.metric_start)
        ),
    )


def _at_home(path: str | None) -> str | None:
    return path and os.path.expanduser(path)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def set_dotted(tree: dict[str, Any], override: str) -> None:
    r"""Apply one override `a.b=value` to a tree of plain values.

    Text keys, such as paths, take the value literally: `run=1e3`, `audio=C:\x: y`. `null` is still none, `[a, b]` a
    list and "quoted" unquoted, if the key allows them. Other values are YAML, with 1e-3 as a number.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"override {override!r} is not of the form key=value, such as optimiser.lr=1e-3")
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
    """The allowed types of a dotted key; none if any type is allowed."""
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
    """Parse the value of a text key; see `set_dotted`."""
    if not text or (text in ("null", "~") and type(None) in kinds):
        return None
    if text[0] in "'\"" or (text[0] == "[" and list[str] in kinds):
        with suppress(yaml.YAMLError):
            value = yaml.load(text, yaml.BaseLoader)  # every scalar is text
            if isinstance(value, (str, list)):
                return value
    return text


def as_yaml(text: str, override: str) -> Any:
    """Parse a YAML value, with 1e-3 as a number (a string in YAML 1.1)."""
    try:
        value = yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise RecipeError(f"override {override!r}: the value is not YAML ({_line(error)})") from None
    is_number = isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value)
    return float(value) if is_number else value


def check_keys(tree: dict[str, Any], cls: type, origin: str, where: str = "") -> None:
    """Raise RecipeError for the first key without a field in `cls`, with the closest known key."""
    fields = typing.get_type_hints(cls)
    for key, value in tree.items():
        if key not in fields:
            raise RecipeError(f"{origin}: unknown key {where + str(key)}; {nearest(str(key), fields)}")
        if dataclasses.is_dataclass(fields[key]) and isinstance(value, dict):
            check_keys(value, typing.cast(type, fields[key]), origin, f"{where}{key}.")


def check_sense(recipe: Recipe, origin: str) -> None:
    """Raise RecipeError for settings that contradict each other."""
    from clearstate.models import PRESETS

    task = PRESETS[recipe.model.name].task if recipe.model.name in PRESETS else None
    schedule, data, loss, valid = recipe.schedule, recipe.data, recipe.loss, recipe.valid
    if schedule.max_steps is None and schedule.max_minutes is None:
        raise RecipeError(f"{origin}: the schedule has no end: set schedule.max_steps or schedule.max_minutes")
    if sum(map(bool, (data.sources, data.corpus, data.clean or data.noisy))) != 1:
        raise RecipeError(f"{origin}: set exactly one of data.sources, data.corpus, or data.noisy and data.clean")
    if valid.corpus and valid.clean:
        raise RecipeError(f"{origin}: set either valid.corpus, or valid.noisy and valid.clean")
    for where, section in (("data", data), ("valid", valid)):
        if isinstance(section.clean, list):  # one folder per voice
            if section.noisy or len(section.clean) < 2:
                raise RecipeError(
                    f"{origin}: a list in {where}.clean needs one folder per voice, at least two, and no {where}.noisy"
                )
        elif where == "valid" and section.noisy is None and task == "extend":
            continue  # wide files, narrowed on reading
        elif (section.noisy is None) != (section.clean is None):
            raise RecipeError(f"{origin}: {where}.noisy and {where}.clean go together; set both")
    if not any(value > 0 for name, value in loss_weights(loss).items()):
        raise RecipeError(f"{origin}: every weight in loss is 0: set some of {', '.join(loss_weights(loss))}")
    if (loss.distill + loss.distill_features > 0) != (loss.teacher is not None):
        raise RecipeError(f"{origin}: loss.distill and loss.teacher go together; set both")
    if loss.metric_start is not None and not loss.metric:
        raise RecipeError(f"{origin}: loss.metric_start has no use without loss.metric; set loss.metric, or remove it")
    if loss.level == "utterance" and (data.sources or task == "separate"):
        raise RecipeError(
            f"{origin}: loss.level=utterance needs pairs of noisy and clean recordings (data.corpus, or data.noisy and "
            "data.clean); the items of this recipe have no longer utterance: set loss.level=item"
        )
    if schedule.hold > 0 and recipe.model.start is None:
        raise RecipeError(
            f"{origin}: schedule.hold freezes weights from model.start; set model.start, or schedule.hold=0"
        )


def loss_weights(loss: LossRecipe) -> dict[str, float]:
    """The loss weights by term."""
    return {f.name: getattr(loss, f.name) for f in dataclasses.fields(loss) if f.type is Weight}


def audio_path(recipe: Recipe, path: str) -> Path:
    """Expand `~` and $VARIABLES in a path of the recipe, relative to its audio folder.

    Raises:
        RecipeError: if a variable is not set.
    """
    own = Path(os.path.expandvars(path)).expanduser()
    whole = own if own.is_absolute() else Path(os.path.expandvars(recipe.audio)).expanduser() / own
    if unset := re.search(r"\$\{?(\w+)", str(whole)):
        raise RecipeError(
            f"the recipe reads audio from {whole}, but the variable {unset[1]} is not set: "
            f"export {unset[1]}=FOLDER, or set audio=FOLDER"
        )
    return whole
