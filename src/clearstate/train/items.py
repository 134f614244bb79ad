"""Open the training and validation items of a recipe through clearstate.data.

The task of the model decides what an item is: noisy and clean for enhancement, a mixture and its sources for
separation, narrow and wide for extension. The loop calls the input `noisy` and the target `clean`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from clearstate.audio.contrast import Makeup, stretch_contrast
from clearstate.data import (
    ExtensionConfig,
    ExtensionDataset,
    MixtureConfig,
    MixtureDataset,
    MixtureFolder,
    NarrowedFolder,
    PairedCrops,
    PairedFolder,
    SeparationConfig,
    SeparationDataset,
    SourceSpec,
    mixtures_of,
    open_sources,
    recognise,
)
from clearstate.data.corpora import Mixture
from clearstate.data.preview import Items as RatedDataset
from clearstate.nearest import nearest
from clearstate.train.recipe import DataRecipe, Recipe, RecipeError, ValidRecipe, audio_path

INPUTS, TARGETS = ("noisy", "mixture", "narrow"), ("clean", "sources", "wide")
MIXED: dict[str, tuple[Callable[..., RatedDataset], type]] = {
    "enhance": (MixtureDataset, MixtureConfig),
    "separate": (SeparationDataset, SeparationConfig),
    "extend": (ExtensionDataset, ExtensionConfig),
}


class Dataset(Protocol):
    """What clearstate.data gives: item i of epoch e is `dataset[e * len(dataset) + i]`."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


class Pairs(Protocol):
    """Held-out pairs in full length, at the model's rate."""

    def __len__(self) -> int: ...

    def pair(self, i: int) -> tuple[Tensor, Tensor]:
        """Noisy and clean waveform of pair i, (n,) each."""
        ...


class Drawn:
    """Training items, or whole held-out ones, of a data set.

    Args:
        makeup: stretch the perceptual contrast of the targets of training, as SEMamba + PCS learns it. Departure: item
            by item. The published program stretches whole files before they are cut, and by default divides them by
            their peak ("peak"), which leaves target and input at unrelated levels; "rms" keeps the target's.
    """

    def __init__(self, dataset: Dataset, makeup: Makeup | None = None):
        self.dataset, self.makeup = dataset, makeup

    def __len__(self) -> int:
        return len(self.dataset)

    def example(self, epoch: int, item: int) -> dict[str, Tensor]:
        """One training item as tensors."""
        drawn = self.dataset[epoch * len(self.dataset) + item]
        noisy, clean = in_and_out(drawn)
        if self.makeup is not None:
            clean = torch.from_numpy(stretch_contrast(clean.numpy(), self.makeup))
        gain = {"gain": torch.from_numpy(drawn["gain"])} if "gain" in drawn else {}
        return {"noisy": noisy, "clean": clean, **gain}

    def pair(self, i: int) -> tuple[Tensor, Tensor]:
        """Input and target of item i, (n,) each."""
        return in_and_out(self.dataset[i])


def in_and_out(drawn: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """The model's input and target."""
    found = [next(drawn[name] for name in names if name in drawn) for names in (INPUTS, TARGETS)]
    noisy, clean = (torch.from_numpy(np.ascontiguousarray(signal, np.float32)) for signal in found)
    return noisy, clean


def open_items(recipe: Recipe, task: str, sample_rate: int) -> Drawn:
    """The training items of a recipe at the model's rate; raises RecipeError like `open_dataset`."""
    return Drawn(open_dataset(recipe, task, sample_rate), recipe.data.pcs)


def open_dataset(recipe: Recipe, task: str, sample_rate: int) -> RatedDataset:
    """Open the data set for the training items of a recipe.

    Raises:
        RecipeError: for an unknown key in data.sources or data.mixture, or missing audio.
    """
    data = recipe.data
    with opening("training"):
        if data.sources:
            dataset_class, config_class = MIXED[task]
            config = checked({"seconds": data.seconds} | data.mixture, config_class, "data.mixture")
            spec = checked({"sample_rate": sample_rate} | data.sources, SourceSpec, "data.sources")
            for role in ("speech", "noise", "rooms"):
                paths = spec.get(role, ())
                listed = paths if isinstance(paths, (list, tuple)) else [paths]
                spec[role] = tuple(str(audio_path(recipe, str(path))) for path in listed)
            sources = open_sources(SourceSpec(**spec))
            return dataset_class(sources, config_class(**config), recipe.seed, data.items)
        if task == "separate":
            return MixtureFolder(mixtures(recipe, data, "train"), sample_rate, data.seconds, recipe.seed)
        levels = recipe.loss.level == "utterance"
        return PairedCrops(pairs(recipe, data, "train", sample_rate), data.seconds, recipe.seed, levels)


def open_pairs(recipe: Recipe, task: str, sample_rate: int) -> Drawn | None:
    """Open the validation items of a recipe in full length; None if it names none.

    Raises:
        RecipeError: if they are missing, or are a published test set without `valid.allow_test_set`.
    """
    valid = recipe.valid
    if valid.clean is None and valid.corpus is None:
        return None
    with opening("validation"):
        if task == "separate":
            return Drawn(MixtureFolder(mixtures(recipe, valid, "valid"), sample_rate))
        if task == "extend" and isinstance(valid.clean, str) and valid.noisy is None:
            return Drawn(NarrowedFolder(audio_path(recipe, valid.clean), sample_rate))
        return Drawn(pairs(recipe, valid, "valid", sample_rate, valid.allow_test_set))


def pairs(
    recipe: Recipe, where: DataRecipe | ValidRecipe, split: str, sample_rate: int, test_set: bool = False
) -> PairedFolder:
    """The pairs of a data or valid section: a split of a known corpus, or two folders."""
    if where.corpus is not None:
        return PairedFolder.of_corpus(audio_path(recipe, where.corpus), split, sample_rate)
    noisy, clean = where.noisy, where.clean
    assert isinstance(noisy, str) and isinstance(clean, str)  # checked with the recipe
    # If training and validation use the same two folders, they are split by speaker.
    shared = (recipe.data.noisy, recipe.data.clean) == (recipe.valid.noisy, recipe.valid.clean)
    return PairedFolder(
        audio_path(recipe, noisy), audio_path(recipe, clean), sample_rate,
        split=split if shared else "all", validate_on_test_set=test_set,
    )  # fmt: skip


def mixtures(recipe: Recipe, where: DataRecipe | ValidRecipe, split: str) -> list[Mixture]:
    """The mixtures of a data or valid section: a split of a known corpus, or one folder per voice."""
    if where.corpus is not None:
        root = audio_path(recipe, where.corpus)
        corpus = recognise(root)
        if corpus is None:
            raise FileNotFoundError(f"{root} contains no known corpus of mixtures")
        return corpus.mixtures(split, noisy=where.noisy_mixtures)
    folders = [where.clean] if isinstance(where.clean, str) else list(where.clean or ())
    return mixtures_of(*(audio_path(recipe, folder) for folder in folders))


@contextmanager
def opening(what: str) -> Iterator[None]:
    """Turn errors while opening audio into a RecipeError."""
    try:
        yield
    except RecipeError:
        raise
    except (FileNotFoundError, ValueError) as error:
        text = str(error).replace("pass validate_on_test_set=True", "set valid.allow_test_set=true")
        raise RecipeError(
            f"{what} audio: {text}. docs/training.md lists the audio to download and its folders"
        ) from error


def checked(values: dict[str, Any], cls: type, where: str) -> dict[str, Any]:
    """Check that the dataclass `cls` has a field for each key; return the values with lists as tuples."""
    known = [f.name for f in fields(cls)]
    for key in values:
        if key not in known:
            raise RecipeError(f"unknown key {where}.{key}; {nearest(key, known)}")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
