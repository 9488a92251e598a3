"""Any sources to packed shards: looked through once, split, written, by one process or by
several that share the work.

Three phases, each in pieces that are files: slices of structures are looked at, by share; the split
follows from what all slices say, and every process makes it anew; shards are written, by share.
Whoever finds that all is there finishes. The result does not depend on who did what, nor on how
often it was interrupted.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from dataloader import input_files, plain_json
from dataloader.data_file import Source
from dataloader.errors import InputError
from dataloader.limits import JSON_BYTES
from dataloader.packed.packed_manifest import write_json, write_manifests
from dataloader.packed.recipe import PackingRecipe, asked_for
from dataloader.packed.shard_writer import Shards
from dataloader.packed.split_report import split_survey
from dataloader.packed.survey import Look
from dataloader.portion import WHOLE, Portion
from dataloader.work_folder import (
    LOCK,
    LOOK_EVERY,
    TRIES,
    Overtaken,
    WorkFolder,
    holder,
    overtaken,
    take,
)

WORK = "packing"  # folder of what is not finished; removed at the end
ASKED = "asked.json"
SHARES = "shares.json"
SHOWN_SHARES = 20


class Deal(NamedTuple):
    """Which structure goes where, and what is said of it."""

    shards: Shards
    report: dict[str, Any]


@dataclass(frozen=True)
class Packing:
    """What is to be packed, where to, how.

    Attributes:
        sources: opened.
        output: folder of the shards, or of one folder for each split.
        recipe: how.
        say: takes lines for the log.
    """

    sources: Sequence[Source]
    output: Path
    recipe: PackingRecipe
    say: Callable[[str], None]

    @cached_property
    def asked(self) -> dict[str, Any]:
        """What determines the result."""
        return asked_for(self.sources, self.recipe)

    @property
    def work(self) -> Path:
        """Folder of what is not finished."""
        return self.output / WORK

    @cached_property
    def look(self) -> Look:
        """The look at every structure."""
        text = json.dumps(self.asked, sort_keys=True)
        return Look(self.sources, self.recipe, self.work, hashlib.sha256(text.encode()).hexdigest())

    @cached_property
    def deal(self) -> Deal:
        """Which structure goes where: it follows from what all slices say, so that every
        process finds the same.

        Raises:
            Overtaken: a slice is not there.
            InputError: ID files contradict each other, or a split would be empty.
        """
        survey = self.look.survey()
        if survey is None:
            raise Overtaken(
                f"slices in {self.work} were removed while this process worked "
                "with them; start again"
            )
        assignment, report = split_survey(survey, self.sources, self.recipe)
        folders = {
            name: self.output / name if len(assignment.names) > 1 else self.output
            for name in assignment.names
        }
        return Deal(
            Shards(assignment, folders, survey, self.sources, self.recipe, self.work), report
        )

    @property
    def report(self) -> dict[str, Any] | None:
        """The report of a packing of these data with these settings that is done;
        None where there is none.
        """
        try:
            report = dict(
                plain_json.loads(input_files.read_text(self.output / "report.json", JSON_BYTES))
            )
            return report if report["asked"] == self.asked else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def begun(self) -> Any:
        """What an unfinished packing in the folder was asked for; None where there is none."""
        try:
            return plain_json.loads(input_files.read_text(self.work / ASKED, JSON_BYTES))
        except (OSError, ValueError):
            return None


def pack(packing: Packing) -> dict[str, Any]:
    """Pack all structures of the sources; what an earlier try or a share has done is taken over.

    Returns:
        The report, which also lies in report.json.

    Raises:
        InputError: a structure cannot be packed, the ID files contradict each other, or the
            folder holds other shards.
        OSError: the folder cannot be written.
    """

    def everything(folder: WorkFolder) -> dict[str, Any]:
        if folder.alone:
            for begun in packing.work.glob("*.tmp"):
                begun.unlink(missing_ok=True)
        write_json(packing.work / ASKED, packing.asked, packing.work)
        packing.look.make(WHOLE)
        _write(packing, WHOLE)
        return _finished(packing, folder)

    report = _packed_by(packing, everything)
    assert report is not None
    return report


def pack_share(packing: Packing, portion: Portion, *, wait: bool = False) -> dict[str, Any] | None:
    """Do one share: look at its slices, and write its shards where all slices were looked at;
    the last one finishes.

    Args:
        packing: what and how.
        portion: which share.
        wait: for other shares to look at their slices, which must be at it; else the share
            is to be started again.

    Returns:
        The report where all is done; None where shares are missing, which is said.

    Raises:
        InputError: as ``pack``.
        OSError: the folder cannot be written.
    """
    for tries in range(TRIES):
        try:
            _begin(packing, portion)
            if not _share_is_done(packing, portion, wait=wait):
                return None
            break
        except Overtaken:
            if tries == TRIES - 1:
                raise

    def rest(folder: WorkFolder) -> dict[str, Any] | None:
        return None if _unwritten(packing) else _finished(packing, folder)

    return _packed_by(packing, rest, patient=False)


def finish(packing: Packing) -> dict[str, Any]:
    """See that every share has done its work, and write manifests and report.

    Raises:
        InputError: a share is missing, or nothing was begun.
        OSError: the folder cannot be written.
    """
    if packing.report is None and packing.begun is None:
        _refuse_another(packing)
        raise InputError(
            f"--finish: nothing of --output_dir {packing.output} was begun; start the shares "
            "first: --share 0/N, …"
        )

    def rest(folder: WorkFolder) -> dict[str, Any] | None:
        size = _size_begun(packing)
        if slices := packing.look.missing():
            raise InputError(
                f"--finish: {_names(slices, size)} not looked through everything yet; start them, "
                "then every share once more for its shards"
            )
        if shards := _unwritten(packing):
            raise InputError(
                f"--finish: {_names(shards, size)} not written everything yet; start "
                "again with --share"
            )
        return _finished(packing, folder)

    report = _packed_by(packing, rest)
    assert report is not None
    return report


def _packed_by(
    packing: Packing, work: Callable[[WorkFolder], dict[str, Any] | None], *, patient: bool = True
) -> dict[str, Any] | None:
    """The report of what is done in a folder that this process has for itself,
    or that was done before.

    Args:
        packing: what and how.
        work: in the folder; gives the report.
        patient: wait for another process that has the folder; else leave it to
            that one, and give None.
    """
    tries = 0
    while (report := packing.report) is None:
        _refuse_another(packing)
        with _at_work(packing, patient=patient) as folder:
            if folder is None:
                return None
            try:
                if packing.report is None:
                    _refuse_another(packing)  # what was made while this process waited
                    with overtaken(packing.work):
                        return work(folder)
            except Overtaken:
                tries += 1
                if tries == TRIES:
                    raise
    _remove_leftovers(packing.work)
    packing.say(f"{packing.output} is packed already")
    return report


def _begin(packing: Packing, portion: Portion) -> None:
    """Say in the folder what is packed there, unless a sibling has said it.

    Whoever finds a sibling at it looks again, and does not wait for the folder: the siblings
    may wait for this share.

    Raises:
        InputError: the folder holds something else, siblings that were started with other
            data or settings among it.
    """
    while packing.report is None and packing.begun != packing.asked:
        _refuse_another(packing)
        with _at_work(packing, patient=False) as folder, overtaken(packing.work):
            if folder is None:
                time.sleep(LOOK_EVERY)
            elif packing.report is None:
                _refuse_another(packing)
                write_json(packing.work / ASKED, packing.asked, packing.work)
                write_json(packing.work / SHARES, {"shares": portion.size}, packing.work)


def _share_is_done(packing: Packing, portion: Portion, *, wait: bool) -> bool:
    """Do what can be done of a share beside others; whether its shards are written."""
    with _at_work(packing, shared=True), overtaken(packing.work):
        if packing.report is not None:
            return True
        write_json(packing.work / SHARES, {"shares": portion.size}, packing.work)
        packing.look.make(portion)
        waiting = False
        while slices := packing.look.absent() or packing.look.missing():
            if not waiting:
                packing.say(
                    f"share {portion}: its structures are looked through; "
                    f"{_names(slices, portion.size)} not yet"
                )
                waiting = True
            if not wait:
                packing.say(
                    "start every share once more when all have looked: then it writes its shards"
                )
                return False
            time.sleep(LOOK_EVERY)
        # where there are no locks, a sibling may have said something else at the same moment
        _refuse_another(packing)
        written = _write(packing, portion)
        packing.say(
            f"share {portion}: its {written} of {len(packing.deal.shards.all)} shards are written"
        )
        if shards := _unwritten(packing):
            packing.say(f"{_names(shards, portion.size)} not written everything yet")
            return False
    return True


def _write(packing: Packing, portion: Portion) -> int:
    """Say how the structures are split, and write the shards of a share; how many they are."""
    for line in packing.deal.report["lines"]:
        packing.say(line)
    mine = portion.of(packing.deal.shards.all)
    for folder in {shard.folder for shard in mine}:
        folder.mkdir(parents=True, exist_ok=True)
    packing.deal.shards.write(mine)
    return len(mine)


def _unwritten(packing: Packing) -> list[int]:
    """Numbers of the shards that are still to be written."""
    shards = packing.deal.shards
    return [number for number, shard in enumerate(shards.all) if shards.entry(shard) is None]


def _finished(packing: Packing, folder: WorkFolder) -> dict[str, Any]:
    """Write manifests and report, and remove the work folder."""
    deal = packing.deal
    by_split: dict[str, list[dict[str, Any]]] = {name: [] for name in deal.shards.stages}
    folders = {}
    for shard in deal.shards.all:
        entry = deal.shards.entry(shard)
        if entry is None:
            raise Overtaken(
                f"{shard.path} was removed while this process worked with it; start again"
            )
        by_split[shard.split].append(entry)
        folders[shard.split] = shard.folder
    for name, entries in by_split.items():
        about = {"split": name, "asked": packing.asked}
        write_manifests(folders[name], entries, about, deal.shards.stages[name], packing.work)
    if packing.recipe.id_key is not None:
        deal.shards.write_ids(packing.output)
    write_json(packing.output / "report.json", deal.report | {"asked": packing.asked}, packing.work)
    folder.finish()
    return deal.report


def _names(items: Sequence[int], size: int) -> str:
    """The shares that some slices or shards belong to: ``share 2/8 has``,
    ``shares 2/8, 5/8 have``.
    """
    owners = sorted({item % size for item in items})
    shown = ", ".join(str(Portion(number, size)) for number in owners[:SHOWN_SHARES])
    if len(owners) == 1:
        return f"share {shown} has"
    more = f" and {len(owners) - SHOWN_SHARES} others" if len(owners) > SHOWN_SHARES else ""
    return f"shares {shown}{more} have"


def _size_begun(packing: Packing) -> int:
    """How many shares the work is divided into, as the one that was started
    last has said; else 1.
    """
    try:
        size = plain_json.loads(input_files.read_text(packing.work / SHARES, JSON_BYTES))["shares"]
        return size if type(size) is int and size > 0 else 1
    except (OSError, ValueError, KeyError, TypeError):
        return 1


def _refuse_another(packing: Packing) -> None:
    """Refuse a folder with anything in it but an unfinished packing of the same data
    with the same settings.

    A folder in which a packing left nothing but its lock, because it was killed before it had
    said a word, is empty.

    Siblings may begin, go on and finish meanwhile. What they write later is looked for first:
    where it is there, so is what they wrote before it.
    """
    is_empty = _is_empty(packing)
    begun = packing.begun
    if begun is None and is_empty:
        return
    if begun != packing.asked and packing.report is None:
        raise InputError(
            f"--output_dir {packing.output} holds something else than an unfinished packing of "
            "these data with these settings; give an empty folder, or the settings it was "
            "begun with"
        )


def _is_empty(packing: Packing) -> bool:
    """Whether nothing is in the output folder, or nothing that says what was packed there."""
    output = packing.output
    entries = [entry.name for entry in output.iterdir()] if output.exists() else []
    if entries == [WORK] and packing.work.is_dir():
        try:
            return all(map(_says_nothing, packing.work.iterdir()))
        except FileNotFoundError:  # a sibling left it with nothing in it, or has just finished
            return _is_empty(packing)
    return not entries


def _says_nothing(entry: Path) -> bool:
    """Whether a file in the work folder was there before anything else was."""
    begun = entry.name.removeprefix(".").startswith(f"{ASKED}.") and entry.suffix == ".tmp"
    return begun or entry.name in (LOCK, ASKED)


@contextlib.contextmanager
def _at_work(
    packing: Packing, *, shared: bool = False, patient: bool = True
) -> Iterator[WorkFolder | None]:
    """Have the work folder, after waiting for another process that packs there; None
    where nobody is to wait.
    """
    work = packing.work
    waiting = False
    while (folder := take(work, shared=shared)) is None and patient:
        if not waiting:
            packing.say(f"waiting for {holder(work)}, which packs into {packing.output}")
            waiting = True
        time.sleep(LOOK_EVERY)
    try:
        yield folder
    finally:
        if folder is not None:
            folder.release()


def _remove_leftovers(work: Path) -> None:
    """What a process left that was killed when all was done."""
    with contextlib.suppress(OSError):
        if work.is_dir() and (folder := take(work)) is not None:
            folder.finish()
