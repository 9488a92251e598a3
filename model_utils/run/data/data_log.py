"""What the log says of data: what they hold, what was left out, how E0s stand to atoms alone."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dataloader import atomic_energies
from dataloader.data_file import Census, Source
from dataloader.dataset import Dataset
from dataloader.quantities import QUANTITIES
from dataloader.sources import Adjusted
from dataloader.structure import Structure, symbols
from model_utils.runtime import log


def compare_energies(data: Dataset, remedy: str, atoms: Sequence[Structure] | None = None) -> None:
    """Say what isolated atoms of the data are beside the model's E0s, and which of
    these no atom can have.

    Args:
        data: to train on, with the facts of the model.
        remedy: how the model gets other E0s.
        atoms: isolated ones, where their heads are not those that the data's sources give them.
    """
    facts = data.facts
    own = {
        head: dict(zip(facts.atomic_numbers, row, strict=True))
        for head, row in zip(facts.heads, facts.atomic_energies, strict=True)
    }
    if atoms is None:
        atoms = [atom for source in data.sources for atom in source.isolated_atoms]
    atoms = [atom for atom in atoms if atom.energy is not None]
    # which heads occur is looked up only where it is asked for: it goes through all structures
    is_asked = len(facts.heads) > 1 and any(atom.head is None for atom in atoms)
    occurring = [*data.elements_by_head()] if is_asked else []
    by_head, nameless = atomic_energies.isolated_of_heads(atoms, facts.heads, occurring)
    if nameless:
        log.warning(
            "warning: IsolatedAtom frames of %s name no head, and are compared with the E0s of "
            "none; write `head` into them",
            symbols(nameless),
        )
    for head, isolated in by_head.items():
        different = atomic_energies.differences(isolated, own.get(head, {}))
        if different:
            text = (
                "IsolatedAtom frames are not what the E0s of head %s are: %s eV; the "
                "model's are used (%s)"
            )
            log.warning(f"warning: {text}", head, different, remedy)
        elif set(isolated) & set(own.get(head, {})):
            log.info("IsolatedAtom frames are the E0s of head %s", head)
    for head, energies in own.items():
        low = atomic_energies.impossible(energies)
        if low:
            text = (
                "no atom has so low an E0 as head %s has: %s: of another unit, or fitted to "
                "compositions that do not "
            )
            text += (
                "determine it; energies of other compositions, fragments and reactions mean "
                "nothing with it (%s)"
            )
            log.warning(f"warning: {text}", head, atomic_energies.shown(low), remedy)


def say_zero_energies(data: Dataset, role: str, remedy: str) -> None:
    """Warn of elements that occur in a head whose E0 of them is 0 while it has others: nobody gave
    it one, and energies of such structures are off by that of their atoms.

    Args:
        data: with the facts of the model.
        role: of the data, for the message.
        remedy: what to do.
    """
    facts = data.facts
    suspected = {
        head: own
        for head, row in zip(facts.heads, facts.atomic_energies, strict=True)
        if (
            own := atomic_energies.without_energy(dict(zip(facts.atomic_numbers, row, strict=True)))
        )
    }
    # which elements occur is looked up only where it is asked for: it goes through all structures
    occurring = data.elements_by_head() if suspected else {}
    for head, own in suspected.items():
        without = sorted(set(own) & occurring.get(head, set()))
        if without:
            log.warning(
                "warning: %s structures of head %s have %s, whose E0 is 0 eV there, which says "
                "nothing: their energies are off by that of these atoms (%s)",
                *(role, head, symbols(without), remedy),
            )


def _label_texts(census: Census) -> str:
    """Which quantities were found under which names, with counts where records differ."""
    names: Counter[str] = Counter()
    for names_of_record, count in census.label_names.items():
        labels = [
            f"{quantity} from {name}"
            for quantity, name in zip(QUANTITIES, names_of_record, strict=True)
            if name
        ]
        names[", ".join(labels) or "no labels"] += count
    return "; ".join(f"{text}{f' ({n})' if len(names) > 1 else ''}" for text, n in names.items())


def describe_source(source: Source, isolated: str = "are left out") -> None:
    """Log what a source says of its records beside their number.

    Args:
        source: an opened one.
        isolated: what becomes of its isolated atoms.
    """
    census = source.census
    for layout, count in census.layouts.items():
        log.info("  layout %s: %d records", layout, count)
    for rule, count in census.pbc_rules.items():
        log.info("  pbc %s: %d records", rule, count)
    if source.isolated_atoms:
        log.info("  %d IsolatedAtom frame(s) %s", len(source.isolated_atoms), isolated)
    if census.dropped:
        log.warning("  dropped %d: %s", census.dropped.total(), census.drop_report())
    if census.left_out:
        log.info("  left out %d: %s", census.left_out.total(), census.left_out_report())
    for text in census.warnings:
        log.warning("  %s", text)


def describe(role: str, dataset: Dataset) -> None:
    """Log what a data set holds: counts, label names, rules that were applied,
    what was left out and why.
    """
    for source in dataset.sources:
        labels = _label_texts(source.census)
        log.info(
            "%s: %s: %d structures, %d atoms; %s",
            role,
            source.path,
            len(source),
            source.n_atoms.sum(),
            labels,
        )
        describe_source(source)
        for text, count in source.census.notes.items():
            log.info("  %s: %d structures", text, count)
        _say_weightless(source)
    own, shares = dataset.shares()
    for share in shares:
        path = dataset.sources[int(dataset.places[share.rows[0], 0])].path
        log.info(
            "  an epoch takes %d%s of the %d of %s beside %d others",
            share.taken,
            " (some more than once)" if share.taken > len(share.rows) else "",
            len(share.rows),
            path,
            len(own),
        )
    for reason, count in dataset.left_out.items():
        log.info("  %d structures left out: %s", count, reason)
    if dataset.free_atoms_only and any(
        source.says_what_was_held(dataset.places[dataset.places[:, 0] == number, 1])
        for number, source in enumerate(dataset.sources)
    ):
        log.info("  records say which atoms were fixed: only force components of free atoms count")


def _say_weightless(source: Source) -> None:
    """Say how many labels of a file have the weight 0, where looking is cheap: in files made for
    mace-torch they stand for labels that are not there, and errors count them here.
    """
    if not source.in_memory:
        return
    counts: Counter[str] = Counter()
    for i in range(len(source)):
        structure = source.structure(i)
        counts.update(name for name in structure.labels if structure.weight_of(name) == 0)
    for name, count in counts.items():
        log.info(
            "  %d of %d structures have %s of weight 0: no loss counts them, and errors do, which "
            "have no weights (in mace-torch's tables they are left out)",
            *(count, len(source), name),
        )


def say_other_heads(sources: Sequence[Source]) -> None:
    """Say, once for a file, which records name other heads than the one that is given for it."""
    said: set[tuple[Path, str | None]] = set()
    for source in sources:
        if not isinstance(source, Adjusted) or (source.path, source.spec.head) in said:
            continue
        n = source.of_other_heads()
        if n == 0:
            continue
        said.add((source.path, source.spec.head))
        named = f"{source.path}: {n} of {len(source)} structures name another head"
        if source.spec.head_of_all:
            log.info("%s; all have the head %s, which is given", named, source.spec.head)
        elif n == len(source):  # of which it need not have been meant
            log.info("%s than %s, and keep theirs", named, source.spec.head)
        else:
            log.warning(
                "warning: %s than %s, which is given for the file, and keep theirs; "
                "`head_of_all: true` in sources takes it for all",
                *(named, source.spec.head),
            )
