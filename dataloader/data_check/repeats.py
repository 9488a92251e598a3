"""Elements and heads of sets, structures that stand twice, and the memory that a batch takes."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dataloader.data_check.looking import Finding, Set
from dataloader.structure import symbols


def elements(sets: Sequence[Set], known: Sequence[int] | None) -> list[Finding]:
    """Elements of the data, and those that a model lacks."""
    findings = []
    for data in sets:
        per_element = data.counts.astype(bool).sum(axis=0)
        present = np.nonzero(per_element)[0]
        text = f"{len(present)} elements: {symbols(present)}"
        findings.append(Finding(level="note", check="elements", text=text, data=data.name))
        lacking = [int(z) for z in present if known is not None and z not in known]
        if lacking:
            rows = np.asarray(data.counts[:, lacking].any(axis=1))
            text = f"{symbols(lacking)} in {rows.sum()} structures, which the model.json lacks"
            findings.append(
                Finding(
                    level="error", check="elements", text=text, data=data.name, keys=data.keys(rows)
                )
            )
        rare = [int(z) for z in present if per_element[z] < 10]
        if rare and len(data) >= 100:
            text = f"fewer than 10 structures have {symbols(rare)}"
            findings.append(Finding(level="warning", check="elements", text=text, data=data.name))
    if len(sets) > 1:
        trained = sets[0].counts.any(axis=0)
        for data in sets[1:]:
            unseen = [int(z) for z in np.nonzero(data.counts.any(axis=0) & ~trained)[0]]
            if unseen:
                rows = np.asarray(data.counts[:, unseen].any(axis=1))
                text = f"{symbols(unseen)} in {rows.sum()} structures, which {sets[0].name} lacks"
                findings.append(
                    Finding(
                        level="error",
                        check="elements",
                        text=text,
                        data=data.name,
                        keys=data.keys(rows),
                    )
                )
    return findings


def heads(sets: Sequence[Set], known: Sequence[str] | None) -> list[Finding]:
    """Heads that the structures name, and those that a model lacks or that are not said."""
    findings = []
    for data in sets:
        named, counts = np.unique(data.looked["head"], return_counts=True)
        sizes = dict(zip(named.tolist(), counts.tolist(), strict=True))
        if set(sizes) == {""} and (known is None or len(known) == 1):
            continue
        text = "heads: " + ", ".join(f"{head or 'none named'} {n}" for head, n in sizes.items())
        findings.append(Finding(level="note", check="heads", text=text, data=data.name))
        for head, n in sizes.items():
            if known is None or head in known or (head == "" and len(known) == 1):
                continue
            what = (
                f"head {head!r}, which the model.json lacks"
                if head
                else f"no head, and the model.json has {[*known]}"
            )
            rows = np.asarray(data.looked["head"] == head)
            text = (
                f"{n} structures name {what}; it is `head` in the record, --head, or of a "
                "source in the YAML"
            )
            findings.append(
                Finding(
                    level="error", check="heads", text=text, data=data.name, keys=data.keys(rows)
                )
            )
    return findings


def repeats(sets: Sequence[Set]) -> list[Finding]:
    """Structures that stand twice, in one set or in two, and whether their energies agree."""
    findings = []
    for number, data in enumerate(sets):
        prints = data.looked["fingerprint"]
        _, first, counts = np.unique(prints, return_index=True, return_counts=True)
        twice = np.isin(np.arange(len(prints)), first, invert=True)
        if twice.any():
            text = f"{twice.sum()} structures repeat {int((counts > 1).sum())} others of the set"
            findings.append(
                Finding(
                    level="warning",
                    check="duplicates",
                    text=text,
                    data=data.name,
                    keys=data.keys(twice),
                )
            )
            spread = _largest_disagreement(prints, data.looked["energy"] / data.n_atoms)
            if spread > 1e-3:
                text = f"equal structures have energies that differ by up to {spread:.4g} eV/atom"
                findings.append(
                    Finding(level="error", check="duplicates", text=text, data=data.name)
                )
        for other in sets[:number]:
            shared = np.isin(prints, other.looked["fingerprint"])
            if shared.any():
                text = (
                    f"{shared.sum()} structures stand in {other.name} too: errors "
                    "on them say nothing"
                )
                findings.append(
                    Finding(
                        level="error",
                        check="duplicates",
                        text=text,
                        data=data.name,
                        keys=data.keys(shared),
                    )
                )
    return findings


def _largest_disagreement(prints: NDArray[np.uint64], values: NDArray[np.float64]) -> float:
    order = np.argsort(prints, kind="stable")
    same = prints[order][1:] == prints[order][:-1]
    gaps = np.abs(np.diff(values[order]))[same]
    return float(np.nanmax(gaps)) if np.isfinite(gaps).any() else 0.0


def memory(data: Set, batch_size: int, channels: int, max_ell: int, layers: int) -> Finding:
    """Rough memory of a training step on the largest batch: messages on edges rule it."""
    largest = np.sort(data.looked["n_edges"].astype(np.int64))[::-1][:batch_size].sum()
    atoms = np.sort(data.n_atoms)[::-1][:batch_size].sum()
    # forward, and twice for the derivative of forces
    per_edge = channels * (max_ell + 1) ** 2 * 4 * layers * 3
    gigabytes = float(largest) * per_edge / 2**30
    text = (
        f"the largest batch of {batch_size} has {atoms:.0f} atoms and {largest} edges: some "
        f"{gigabytes:.2g} GiB in single precision with {channels} channels, max_ell "
        f"{max_ell}, {layers} layers"
    )
    return Finding(level="note", check="memory", text=text, data=data.name)
