"""Where everything of a pipeline lies: one folder, which is no other work's."""

import json
from dataclasses import dataclass
from pathlib import Path

from dataloader import durable
from dataloader.errors import InputError
from model_utils.errors import cannot_write

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Place:
    """Names within the folder of a pipeline.

    Attributes:
        folder: of the pipeline.
    """

    folder: Path

    @property
    def records(self) -> Path:
        """Folder with a record, the settings and the log of each stage."""
        return self.folder / "stages"

    @property
    def mark(self) -> Path:
        """The file by which a folder is known as a pipeline's."""
        return self.records / "pipeline.json"

    @property
    def lock(self) -> Path:
        """Held by the process that runs the pipeline."""
        return self.folder / ".pipeline.lock"

    @property
    def stage_lock(self) -> Path:
        """Held by the stage that runs, also where the pipeline around it was killed."""
        return self.records / ".stage.lock"

    @property
    def finetuned_checkpoint(self) -> Path:
        """Raw weights and state of the fine-tuning."""
        return self.folder / "finetune_outputs" / "finetuned_checkpoint.pt"

    @property
    def finetuned_model(self) -> Path:
        """Best weights of the fine-tuning."""
        return self.finetuned_checkpoint.with_name("finetuned_model.pt")

    @property
    def comparison(self) -> Path:
        """Errors of baseline and fine-tuned model on the same structures."""
        return self.folder / "evaluation" / "metrics.json"

    @property
    def generated(self) -> Path:
        """Folder of the candidates, and of what is found out about them."""
        return self.folder / "generation" / "results"

    @property
    def candidates(self) -> Path:
        """The candidates."""
        return self.generated / "generated_crystals.extxyz"

    @property
    def judged(self) -> Path:
        """What is found out about the candidates, in short."""
        return self.generated / "metrics_summary.json"

    @property
    def table(self) -> Path:
        """A row for each candidate."""
        return self.generated / "structures.csv"

    @property
    def summary(self) -> Path:
        """Everything in one file."""
        return self.folder / "summary.json"

    @property
    def page(self) -> Path:
        """Everything to look at."""
        return self.folder / "report.html"

    def record(self, stage: str) -> Path:
        """What is kept of a stage."""
        return self.records / f"{stage}.json"

    def settings(self, stage: str) -> Path:
        """The settings with which the command of a stage is called."""
        return self.records / f"{stage}.yaml"

    def log(self, stage: str) -> Path:
        """What the command of a stage said, in all its starts."""
        return self.records / f"{stage}.log"

    def within(self, path: Path) -> str:
        """A path below the folder as summary and records have it, so that they hold
        where the folder is moved.
        """
        return path.relative_to(self.folder).as_posix()

    def make(self) -> None:
        """Make the folder, or find that it is a pipeline's.

        Raises:
            InputError: other files lie there, or it cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self.mark.exists():
                self._refuse_files_of_others()
                self.records.mkdir(exist_ok=True)
                durable.write_text(self.mark, json.dumps({"format": FORMAT}) + "\n")
        except OSError as error:
            raise cannot_write(f"--run_dir {self.folder}", error, "give another") from None

    def _refuse_files_of_others(self) -> None:
        own = {self.records.name, self.lock.name}
        others = sorted(path.name for path in self.folder.iterdir() if path.name not in own)
        if others:
            raise InputError(
                f"--run_dir {self.folder} holds {others[0]}, which is no pipeline's; "
                "give another folder"
            )
