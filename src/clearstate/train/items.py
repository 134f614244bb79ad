"""Training items and held-out pairs of a recipe, opened through clearstate.data."""

from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clearstate.data.mixing import MixtureConfig, MixtureDataset
from clearstate.data.paired import PairedFolder
from clearstate.data.sources import SourceSpec, open_sources
from clearstate.train.batches import Items
from clearstate.train.recipe import Recipe, RecipeError, audio_path, nearest
from clearstate.train.validate import Pairs


class Mixtures:
    """Mixtures made on the fly."""

    def __init__(self, dataset: MixtureDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def example(self, epoch: int, item: int) -> dict[str, Tensor]:
        drawn = self.dataset[epoch * len(self.dataset) + item]
        return {name: torch.from_numpy(np.ascontiguousarray(drawn[name])) for name in ("noisy", "clean")}


class Crops:
    """A paired corpus, each item a random crop of one pair; a pair shorter than the crop is followed by silence."""

    def __init__(self, pairs: PairedFolder, samples: int, seed: int):
        self.pairs, self.samples, self.seed = pairs, samples, seed

    def __len__(self) -> int:
        return len(self.pairs)

    def example(self, epoch: int, item: int) -> dict[str, Tensor]:
        whole = self.pairs[item]
        spare = max(0, len(whole["noisy"]) - self.samples)
        start = int(np.random.default_rng([self.seed, epoch, item]).integers(spare + 1))
        crop = {}
        for name in ("noisy", "clean"):
            part = whole[name][start : start + self.samples]
            crop[name] = torch.from_numpy(np.pad(part, (0, self.samples - len(part))))
        return crop


class HeldOut:
    """Pairs of two folders in full length."""

    def __init__(self, pairs: PairedFolder):
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def pair(self, i: int) -> tuple[Tensor, Tensor]:
        whole = self.pairs[i]
        return torch.from_numpy(whole["noisy"]), torch.from_numpy(whole["clean"])


def open_items(recipe: Recipe, sample_rate: int) -> Items:
    """The training items of a recipe at the model's rate.

    Raises:
        RecipeError: for an unknown key of data.sources or data.mixture, or audio that is not there.
    """
    data = recipe.data
    try:
        if data.noisy is not None and data.clean is not None:
            folder = PairedFolder(audio_path(recipe, data.noisy), audio_path(recipe, data.clean), sample_rate)
            return Crops(folder, round(data.seconds * sample_rate), recipe.seed)
        config = MixtureConfig(**checked({"seconds": data.seconds} | data.mixture, MixtureConfig, "data.mixture"))
        spec = checked({"sample_rate": sample_rate} | data.sources, SourceSpec, "data.sources")
        for role in ("speech", "noise", "rooms"):
            paths = spec.get(role, ())
            spec[role] = tuple(str(audio_path(recipe, p)) for p in ([paths] if isinstance(paths, str) else paths))
        return Mixtures(MixtureDataset(open_sources(SourceSpec(**spec)), config, recipe.seed, data.items))
    except FileNotFoundError as error:
        raise RecipeError(
            f"training audio is missing: {error}. docs/training.md: what to fetch, and where it goes"
        ) from error


def open_pairs(recipe: Recipe, sample_rate: int) -> Pairs | None:
    """The held-out pairs of a recipe, None if it names none."""
    valid = recipe.valid
    if valid.noisy is None or valid.clean is None:
        return None
    try:
        return HeldOut(PairedFolder(audio_path(recipe, valid.noisy), audio_path(recipe, valid.clean), sample_rate))
    except FileNotFoundError as error:
        raise RecipeError(
            f"validation audio is missing: {error}. Set valid.noisy and valid.clean to folders of held-out pairs"
        ) from error


def checked(values: dict[str, Any], cls: type, where: str) -> dict[str, Any]:
    """`values` as they are if `cls` (a dataclass) has a field for each; lists become tuples."""
    known = [f.name for f in fields(cls)]
    for key in values:
        if key not in known:
            raise RecipeError(f"unknown key {where}.{key}" + nearest(key, known))
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
