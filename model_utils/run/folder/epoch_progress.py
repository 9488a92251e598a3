"""How far an epoch is, on a terminal and in a log."""

from dataloader import progress
from losses import Loss
from model_utils.metrics import metrics
from model_utils.run.train_state import TrainState
from model_utils.runtime import log


class EpochProgress:
    """How far an epoch is: tqdm on a terminal with loss, rate, atoms/s and time left, a line
    now and then in a file.
    """

    REFRESH = 0.5  # s; reading the loss waits for a GPU

    def __init__(self) -> None:
        self._bar: progress.Bar | None = None
        self._next = 0.0
        self._began: float | None = None
        self._said: float | None = None
        self._first = 0  # steps and atoms of the epoch before time is taken
        self._atoms = 0

    def __call__(self, state: TrainState, steps_of_epoch: int, loss: Loss) -> None:
        """One step was taken."""
        done = state.progress.steps_in_epoch
        if self._began is None:
            self._begin(state, steps_of_epoch, loss)
        elif self._bar is not None:
            self._bar.update()
        if self._bar is not None:
            if progress.clock() >= self._next:
                self._refresh(state, loss)
        elif progress.due(self._said):
            self._said = progress.clock()
            log.info("%s", self._line(state, steps_of_epoch, loss))
        if done >= steps_of_epoch:
            self.close()

    def _begin(self, state: TrainState, steps_of_epoch: int, loss: Loss) -> None:
        self._began = progress.clock()
        self._said = None
        self._first = state.progress.steps_in_epoch
        if progress.on_a_terminal():
            self._bar = progress.Bar(
                total=steps_of_epoch, initial=self._first, unit="step", leave=False
            )
            self._atoms = metrics(state.tally.sums.tolist(), loss).n_atoms

    def _refresh(self, state: TrainState, loss: Loss) -> None:
        assert self._bar is not None
        assert self._began is not None
        errors = metrics(state.tally.sums.tolist(), loss)
        speed = (errors.n_atoms - self._atoms) / max(progress.clock() - self._began, 1e-9)
        self._bar.set_description(f"epoch {state.progress.epoch + 1}")
        self._bar.set_postfix_str(
            f"loss {errors.loss:.4g}, lr {state.schedule.rate():.2g}, {speed:.0f} atoms/s"
        )
        self._next = progress.clock() + self.REFRESH

    def _line(self, state: TrainState, steps_of_epoch: int, loss: Loss) -> str:
        assert self._began is not None
        done = state.progress.steps_in_epoch
        passed = progress.clock() - self._began
        left = progress.lasting(passed / max(done - self._first, 1) * (steps_of_epoch - done))
        errors = metrics(state.tally.sums.tolist(), loss)
        where = f"epoch {state.progress.epoch + 1}: step {done} of {steps_of_epoch}"
        return f"{where}, loss {errors.loss:.4g}, lr {state.schedule.rate():.2g}, about {left} left"

    def close(self) -> None:
        """The epoch is over: take the bar off the terminal."""
        self._began = None
        if self._bar is not None:
            self._bar.close()
            self._bar = None
