"""Options of pipeline.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from model_utils.settings.command_sections import SectionOf
from model_utils.settings.declared import OF_THE_COMMAND, ONLY_IN_YAML, panel
from model_utils.settings.option_types import Count
from model_utils.settings.options.common import CommonOptions
from model_utils.settings.options.evaluation import EvaluateOptions
from model_utils.settings.options.finetuning import FinetuneOptions
from model_utils.settings.options.generating import GenerateOptions, JudgeOptions


@panel("Pipeline", 5, nature=OF_THE_COMMAND)
@dataclass(frozen=True, kw_only=True)
class PipelineOptions:
    """Fine-tune, compare, generate, relax and judge, in one folder with one summary."""

    common: CommonOptions
    input_model: Path
    """The model that is fine-tuned, and with which the fine-tuned one is compared: a `*_model.pt`, a `*_checkpoint.pt`, a `.model` of mace, or safetensors."""
    run_dir: Path = Path("pipeline_run")
    """Folder of the pipeline. Repeated, the command does what is missing there, and what a changed setting or file asks for."""
    max_epochs: Count | None = None
    """Epochs of the fine-tuning, in place of `epochs` in the section finetune."""
    num_gen: Count | None = None
    """Candidates, in place of `num_gen` in the section generate."""
    finetune: Annotated[str | None, ONLY_IN_YAML, SectionOf(FinetuneOptions)] = None
    """A section of the YAML: options of finetune.py, without model and places."""
    compare: Annotated[str | None, ONLY_IN_YAML, SectionOf(EvaluateOptions)] = None
    """A section of the YAML: options of evaluate.py. Unless it names data, the test data of the section finetune are judged, else the validation data; names of labels and the device are those of finetune unless given."""
    generate: Annotated[str | None, ONLY_IN_YAML, SectionOf(GenerateOptions)] = None
    """A section of the YAML: options of generate.py."""
    judge: Annotated[str | None, ONLY_IN_YAML, SectionOf(JudgeOptions)] = None
    """A section of the YAML: options of judge.py, by which candidates are relaxed and judged. The baseline judges the same candidates unless it names another model under `compare_with`."""
