"""Records of a run as lines of the log."""

from model_utils.run.error_table import table
from model_utils.run.fit import FinalRecord, TrainRecord, ValidationRecord
from model_utils.run.log_lines import errors_text
from model_utils.runtime import log


class Console:
    """A line for each epoch and each validation, and the table at the end."""

    def train(self, record: TrainRecord) -> None:
        """The training line of an epoch; parts of epochs have none."""
        if record.whole_epoch:
            log.info(
                "epoch %d train  %s  lr %.3g  %s",
                record.epoch,
                errors_text(record.metrics, record.terms),
                record.lr,
                f"{record.metrics.n_atoms / max(record.seconds, 1e-9):.0f} atoms/s",
            )

    def validation(self, record: ValidationRecord) -> None:
        """The validation line, and one per source where there are several."""
        which = "before the first step" if record.step == 0 else f"epoch {record.epoch}"
        mark = "  best" if record.best else ""
        errors = errors_text(record.metrics, record.terms)
        log.info("%s valid  %s  (%s weights)%s", which, errors, record.weights, mark)
        if len(record.by_source) > 1:
            for source, of_source in record.by_source.items():
                log.info("  %s  %s", source, errors_text(of_source, record.terms))

    def final(self, record: FinalRecord) -> None:
        """The table."""
        for line in table(record.rows).splitlines():
            log.info("%s", line)

    def close(self) -> None:
        """The log stays open."""
