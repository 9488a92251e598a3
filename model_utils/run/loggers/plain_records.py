"""Records of a run as plain values by name, for loggers that take nothing else."""

from typing import Any

from model_utils.run.fit import FinalRecord, TrainRecord, ValidationRecord


def of_train(record: TrainRecord) -> dict[str, Any]:
    """Errors of training steps, rate and gradient."""
    return {
        **record.metrics.as_plain(),
        "lr": record.lr,
        "gradient_norm": record.gradient_norm,
        "gradient_norm_max": record.gradient_norm_max,
        "clipped_share": record.clipped_share,
        "step": record.step,
        "whole_epoch": record.whole_epoch,
        "seconds": record.seconds,
    }


def of_validation(record: ValidationRecord) -> dict[str, Any]:
    """Errors of a validation; ``by_source`` has those of each source."""
    return {
        **record.metrics.as_plain(),
        "lr": record.lr,
        "step": record.step,
        "best": record.best,
        "weights": record.weights,
        "seconds": record.seconds,
        "by_source": {source: errors.as_plain() for source, errors in record.by_source.items()},
    }


def of_final(record: FinalRecord) -> dict[str, Any]:
    """The table at the end: errors of the best model by row."""
    return {name: errors.as_plain() for name, errors in record.all_rows().items()}
