"""Options of a fine-tuning: those of a training, and what is made of the source model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from dataloader.errors import InputError
from model_utils.settings.declared import FIXED, panel
from model_utils.settings.option_types import NonNegative, Rate, Ratio
from model_utils.settings.options.common import TrustOptions
from model_utils.settings.options.training import OptimizerOptions, TrainingOptions


@dataclass(frozen=True, kw_only=True)
class GentleOptimizerOptions(OptimizerOptions):
    """How the weights of another model are moved: in smaller steps."""

    lr: Annotated[Rate, FIXED] = 1e-4
    """Learning rate; small, or the source is forgotten in the first steps."""


@panel("The source, and what is made of it", 5, nature=FIXED)
@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(TrainingOptions):
    """Train on from the weights of another model, with its structure."""

    optimizer: GentleOptimizerOptions
    trust: TrustOptions
    input_model: Path
    """A `*_model.pt` (best weights) or `*_checkpoint.pt` (raw weights) of ours, a `.model` of mace, or safetensors."""
    input_json: Path | None = None
    """A model.json that the one of the weights must equal; needed where the file holds none."""
    add_head: str | None = None
    """Give the network a further head of this name, a copy of one of the source's with its E0s. Which structures are of it say the records (`head`) or the YAML's list of sources; of a source with one head, all others are of that one."""
    copy_head: str | None = None
    """Head of the source that --add_head or a new --replay_head copies; its first unless given."""
    replay: Path | None = None
    """Data, of any format, of what the source was trained on, replayed beside the new data so that fine-tuning does not forget. Labels have the usual names; the YAML's list of sources says everything else."""
    replay_ratio: Ratio = 1.0
    """Replayed structures in an epoch for each one of the new data."""
    replay_weight: NonNegative = 1.0
    """Weight of a replayed structure in the loss."""
    replay_labels: Literal["file", "source"] = "file"
    """Where labels of replayed structures come from: their file, or `source`: the source model computes them before training; they are kept as `<name>_replay.xyz`."""
    replay_head: str = "replay"
    """Head of the replayed structures: a new name becomes a copy of the source's head with its E0s; the source's own name trains one head on both, where E0s are unchanged."""
    E0s: str = "keep"
    """Reference energies: `keep` the source's, `shift` them by a least-squares fit of its errors on the training data, head by head, `isolated` takes those of the data's IsolatedAtom frames; or an xyz file of isolated atoms or JSON by element, for all of the source's own heads, or by head and element. A replayed head keeps the source's unless they are given for it by name. Changes are printed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.copy_head is not None and self.add_head is None and self.replay is None:
            raise InputError("--copy_head is given but no new head; name it with --add_head")
        for name in ("add_head", "copy_head", "replay_head"):
            if getattr(self, name) == "":
                raise InputError(f"--{name} is empty; give the head's name, or leave the flag out")
        if (
            self.replay is not None
            and self.replay_labels == "file"
            and self.replay in [source.path for source in self.data.files("train")]
        ):
            raise InputError(
                f"--replay {self.replay} is what the run trains on already; name data that the "
                "source was trained on, or let it label them anew with --replay_labels source"
            )
        if self.replay is not None and self.add_head is not None:
            raise InputError(
                "--replay adds a head of its own, which --replay_head names; leave --add_head out"
            )
        for name in ("ratio", "weight", "labels", "head"):
            if self.replay is None and getattr(self, f"replay_{name}") != getattr(
                FinetuneOptions, f"replay_{name}"
            ):
                raise InputError(
                    f"--replay_{name} is given but not what to replay; name it with --replay"
                )
