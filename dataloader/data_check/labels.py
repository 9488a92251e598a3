"""Labels, distances and cells of one set: what is missing, zero, broken or too close."""

import numpy as np

from dataloader.data_check.looking import Finding, Level, Set

BOHR = 0.529177  # Å
# nearest atoms over the sum of their covalent radii: 1.0 in molecules, 1.2 in the alkali metals
FAR_APART = 1.4
FEWEST = 5  # structures whose middle says something of distances
NOBLE_GASES = [2, 10, 18, 36, 54, 86]  # which have no bonds
FULL_CELL = 40.0  # Å³ per atom; a molecule in a box has hundreds, ice has 10, caesium 110


def labels(data: Set, *, allow_missing: bool = False) -> list[Finding]:
    """Missing and zero labels.

    Args:
        data: the structures.
        allow_missing: some may lack a label that others have.
    """
    energy = data.looked["energy"]
    forces = data.looked["force_square"]
    findings = []
    weightless = {name: data.looked[f"weightless_{name}"] for name in ("energy", "forces")}
    without = {
        "energy": np.isnan(energy) & ~weightless["energy"],
        "forces": np.isnan(forces) & ~weightless["forces"],
    }
    level: Level
    for what, rows in weightless.items():
        if rows.any():
            text = f"{what} of weight 0 in {rows.sum()} of {len(data)} structures: not judged here"
            findings.append(Finding(level="note", check="labels", text=text, data=data.name))
    for what, missing in without.items():
        if not missing.any():
            continue
        text = f"{what} missing in {missing.sum()} of {len(data)} structures"
        level = "note" if allow_missing else "error"
        if missing.all() and not all(others.all() for others in without.values()):
            level = "warning"
            text = (
                f"no structure has {what}: train with --{what}_weight 0, or name the "
                f"label with --{what}_key"
            )
        findings.append(
            Finding(level=level, check="labels", text=text, data=data.name, keys=data.keys(missing))
        )
    for what, zero in (
        ("energy is exactly 0", energy == 0),
        ("all forces are exactly 0", data.looked["zero_forces"]),
    ):
        if zero.any():
            level = "error" if zero.mean() > 0.5 else "warning"
            text = (
                f"{what} in {zero.sum()} of {len(data)} structures: is it a label or a placeholder?"
            )
            findings.append(
                Finding(
                    level=level, check="labels", text=text, data=data.name, keys=data.keys(zero)
                )
            )
    return findings


def geometry(data: Set) -> list[Finding]:
    """Distances, cells, lonely atoms."""
    looked = data.looked
    findings = []
    broken = looked["fault"] != ""
    if broken.any():
        first = str(looked["fault"][np.argmax(broken)])
        text = (
            f"{broken.sum()} structures whose neighbour list shows that they are broken, "
            f"the first: {first}"
        )
        findings.append(
            Finding(
                level="error", check="distances", text=text, data=data.name, keys=data.keys(broken)
            )
        )
    close = looked["closest"] < 0.5
    if close.any():
        text = (
            f"{close.sum()} structures with two atoms closer than half the sum of "
            "their covalent radii"
        )
        findings.append(
            Finding(
                level="warning", check="distances", text=text, data=data.name, keys=data.keys(close)
            )
        )
    findings += _far_apart(data)
    lonely = looked["lonely"] > 0
    if lonely.any():
        text = f"{lonely.sum()} structures with atoms that have no neighbour within the cutoff"
        findings.append(
            Finding(
                level="warning",
                check="distances",
                text=text,
                data=data.name,
                keys=data.keys(lonely),
            )
        )
    full = (looked["box"] > 0) & (looked["box"] < FULL_CELL)
    if full.any():
        text = (
            f"{full.sum()} structures have no periodic direction and a cell as full as a crystal's "
            f"({np.median(looked['box'][full]):.3g} Å³ per atom): is pbc missing?"
        )
        findings.append(
            Finding(level="warning", check="cells", text=text, data=data.name, keys=data.keys(full))
        )
    volumes = looked["volume"]
    if np.isfinite(volumes).any():
        low = np.nanmin(volumes)
        high = np.nanmax(volumes)
        text = f"volume per atom from {low:.3g} to {high:.3g} Å³"
        findings.append(Finding(level="note", check="cells", text=text, data=data.name))
    return findings


def _far_apart(data: Set) -> list[Finding]:
    """Bonds that are all too long, as where positions are in Bohr and taken for Å."""
    closest = data.looked["closest"]
    of_noble_gases = data.counts[:, NOBLE_GASES].sum(axis=1) == data.n_atoms
    # dimers may be curves of a bond that is pulled apart
    bonded = np.isfinite(closest) & ~of_noble_gases & (data.n_atoms > 2)
    if bonded.sum() < FEWEST or np.median(closest[bonded]) < FAR_APART:
        return []
    text = (
        f"of half of the structures no two atoms are closer than {np.median(closest[bonded]):.3g} "
        f"times the sum of their covalent radii: are positions in Bohr? times {BOHR:.6f} they are "
        "in Å"
    )
    return [Finding(level="warning", check="distances", text=text, data=data.name, factor=1 / BOHR)]
