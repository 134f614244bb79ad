"""Training audio: corpora on disk, tar shards, and mixtures generated on the fly.

    sources = open_sources("../shared/data", progress=print)  # or a SourceSpec, or a mapping: speech, noise, rooms, ...
    dataset = MixtureDataset(sources, MixtureConfig(), seed=0, items_per_epoch=10_000)
    order = dataset.order(epoch, start_item)
    loader = DataLoader(dataset, batch_size=8, sampler=order, num_workers=2, collate_fn=collate)
    valid = PairedFolder("valid/denoise/noisy", "valid/denoise/clean", meta="valid/valid.json")

`dataset[epoch * items_per_epoch + item]` is a function of (seed, epoch, item): equal for any number of workers and
after a restart.
"""

from clearstate.data.corpora import recognise
from clearstate.data.extension import ExtensionConfig, ExtensionDataset, NarrowedFolder
from clearstate.data.mixing import MixtureConfig, MixtureDataset, collate
from clearstate.data.paired import PairedCrops, PairedFolder
from clearstate.data.preview import preview
from clearstate.data.separation import MixtureFolder, SeparationConfig, SeparationDataset, mixtures_of
from clearstate.data.sources import Sources, SourceSpec, open_sources

__all__ = [
    "ExtensionConfig", "ExtensionDataset", "MixtureConfig", "MixtureDataset", "MixtureFolder", "NarrowedFolder",
    "PairedCrops", "PairedFolder", "SeparationConfig", "SeparationDataset", "SourceSpec", "Sources", "collate",
    "mixtures_of", "open_sources", "preview", "recognise",
]  # fmt: skip
