"""The table of models: the names under which they are built, and what differs from their defaults."""

import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clearstate.installed import need_torch
from clearstate.nearest import nearest

if TYPE_CHECKING:
    from torch import nn

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"


@dataclass(frozen=True)
class Preset:
    """A model under a name. Nothing is imported until it is built."""

    name: str
    task: str  # enhance, separate or extend
    model: str  # "module:Class" in clearstate.models
    summary: str
    values: tuple[tuple[str, Any], ...] = ()  # of the model's config, where they differ from its defaults
    licence: str = "CC BY 4.0"  # of the weights

    @property
    def weights(self) -> Path | None:
        """The folder of the shipped weights, if there are any."""
        folder = WEIGHTS / self.name
        return folder if (folder / "model.safetensors").is_file() else None

    @property
    def shipped_config(self) -> dict[str, Any]:
        """The config of the shipped weights, which may be of a smaller model than the preset; empty without weights."""
        return json.loads((self.weights / "config.json").read_text())["config"] if self.weights else {}


def _preset(name: str, task: str, model: str, summary: str, licence: str = "CC BY 4.0", **values: Any) -> Preset:
    return Preset(name, task, model, summary, tuple(values.items()), licence)


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        _preset("live", "enhance", "live:Live", "for live sound: small, causal, real time on a CPU"),
        _preset("studio", "enhance", "studio:Studio", "for recordings: `live`, looking both ways"),
        _preset(
            "semamba-basic-causal",
            "enhance",
            "semamba_basic:SEMambaBasic",
            "SEMamba (2024), table 1, causal: convolutions and Mamba on the log magnitude",
        ),
        _preset(
            "semamba-basic",
            "enhance",
            "semamba_basic:SEMambaBasic",
            "SEMamba (2024), table 1, both directions",
            causal=False,
            expand=4,
        ),
        _preset(
            "semamba-basic-transformer",
            "enhance",
            "semamba_basic:SEMambaBasic",
            "the Transformer that SEMamba's table 1 compares with",
            causal=False,
            core="transformer",
        ),
        _preset(
            "semamba-advanced", "enhance", "semamba:SEMamba", "SEMamba (2024): time-frequency Mamba, both directions"
        ),
        _preset(
            "semamba-advanced-uni",
            "enhance",
            "semamba:SEMamba",
            "SEMamba (2024), table 2, Mamba in one direction",
            core="unidirectional",
            expand=2,
        ),
        *(
            _preset(
                f"semamba-causal-{blocks}",
                "enhance",
                "semamba_causal:SEMambaCausal",
                f"RT-SEMamba (2026): causal, {blocks} block{'s' if blocks > 1 else ''}",
                blocks=blocks,
            )
            for blocks in (1, 2, 4, 8)
        ),
        _preset("mp-senet", "enhance", "mp_senet:MPSENet", "MP-SENet (2024): Transformers over time and frequency"),
        _preset(
            "mp-senet-mamba",
            "enhance",
            "mp_senet:MPSENet",
            "the same with a Mamba branch for the magnitude beside a Transformer branch for the phase",
            shared_blocks=6,
            branch_blocks=6,
        ),
        _preset(
            "mp-senet-mamba-as-published",
            "enhance",
            "mp_senet:MPSENet",
            "the hybrid as its code computes it at batch 1: other order of the axes, fusion of single bins",
            shared_blocks=6,
            branch_blocks=6,
            order="frequency_first",
            fusion="bin",
            kv_norm="none",
        ),
        _preset(
            "mp-senet-mamba-small",
            "enhance",
            "mp_senet:MPSENet",
            "the small hybrid: shared blocks of Mamba, two blocks in each branch",
            shared="mamba",
            shared_blocks=2,
            branch_blocks=2,
            one_mixer=True,
        ),
        _preset("saf", "enhance", "saf:SAF", "Spectrum Attention Fusion (2023), our completion of the paper"),
        _preset("saf-causal", "enhance", "saf:SAF", "the same with no look-ahead: streams", causal=True),
        _preset(
            "s4m",
            "separate",
            "s4m:S4M",
            "S4M (2023), two speakers at 8 kHz: an S4 at every scale",
            ssm="dplr",
            every_scale=True,
            expansion=1,
        ),
        _preset("s4m-tiny", "separate", "s4m:S4M", "S4M-tiny (2023), 8 kHz: an S4 at the coarsest scale", ssm="dplr"),
        _preset(
            "s4m-tiny-4ms",
            "separate",
            "s4m:S4M",
            "two speakers at 16 kHz: S4M-tiny in frames of 4 ms, half the work",
            sample_rate=16_000,
            window_ms=4.0,
        ),
        _preset(
            "s4m-causal",
            "separate",
            "s4m:S4M",
            "two speakers at 16 kHz as they speak: causal, half the passes",
            sample_rate=16_000,
            window_ms=4.0,
            passes=8,
            causal=True,
        ),
        _preset(
            "separate-fast",
            "separate",
            "separate_fast:SeparateFast",
            "the default of separate: two speakers at 16 kHz, Mamba over time and attention over bands",
        ),
        _preset(
            "extend-fast",
            "extend",
            "extend_fast:ExtendFast",
            "the missing band of narrow speech, in one step; 48 kHz",
        ),
        _preset(
            "mambawave",
            "extend",
            "mambawave:MambaWave",
            "MambaWave (2024) rebuilt: the missing band of speech by diffusion, 48 kHz",
            licence="CC BY-NC-SA 4.0",
        ),
        _preset(
            "mambawave-as-published",
            "extend",
            "mambawave_as_published:MambaWaveAsPublished",
            "MambaWave's own architecture, with a diffusion that works",
            licence="CC BY-NC-SA 4.0",
        ),
    )
}


def build(name: str, **overrides: Any) -> "nn.Module":
    """The model of a preset with fresh weights.

    Args:
        overrides: values of its config that differ from the preset's.
    Raises:
        ValueError: for an unknown name or config value; the nearest right one is suggested.
        ImportError: without PyTorch.
    """
    preset = find(name)
    need_torch(name)
    module, _, class_name = preset.model.partition(":")
    model_class = getattr(import_module(f"clearstate.models.{module}"), class_name)
    return model_class(_config(model_class, {**dict(preset.values), **overrides}))


def find(name: str) -> Preset:
    """The preset of a name.

    Raises:
        ValueError: for an unknown name; the nearest right one is suggested.
    """
    if name not in PRESETS:
        raise ValueError(f"no model is called {name!r}: {nearest(name, PRESETS)}")
    return PRESETS[name]


def _config(model_class: Any, values: dict[str, Any]) -> Any:
    config_class = model_class.Config
    known = list(config_class.__dataclass_fields__)
    for key in values:
        if key not in known:
            raise ValueError(f"{model_class.__name__} has no config value {key!r}: {nearest(key, known)}")
    return config_class(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})
