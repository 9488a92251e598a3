"""From data and a network's fields to a model.json: the arithmetic's results put where the
description wants them.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from dataloader import durable
from dataloader.atomic_energies import impossible, shown
from dataloader.errors import InputError
from dataloader.statistics import DataSums, HeadSums, Scaling, reference_energies, scale_and_shift
from dataloader.structure import symbols
from model_utils.errors import cannot_write
from model_utils.files.apart import refuse_shared_places
from model_utils.models import description as model_json
from model_utils.models.description import ModelDescription
from model_utils.ranks import joining
from model_utils.ranks.group import Group
from model_utils.run.data.open_data import numbers_of
from model_utils.runtime import log, start_log
from model_utils.settings import terms
from model_utils.settings.energies import energies_for, given_energies, linear_references
from model_utils.settings.options import MetadataFitOptions, MetadataInitOptions, MetadataOptions
from model_utils.settings.options.describing import USUAL_E0S, USUAL_SCALING
from model_utils.tasks import mace_yaml
from model_utils.tasks.data_sums import sums_of, what_is_read
from model_utils.tasks.mace_yaml import Stated

PRESETS: dict[str, dict[str, Any]] = {  # mace's foundation sizes: how far equivariant features go
    "tiny": {"hidden_irreps": "16x0e", "r_max": 4.0},  # for a first try
    "small": {"hidden_irreps": "128x0e"},
    "medium": {"hidden_irreps": "128x0e+128x1o"},
    "large": {"hidden_irreps": "128x0e+128x1o+128x2e"},
}
R_MAX = 5.0  # Å, mace_run_train's default
DEFAULT_HEAD = "Default"
NAMELESS = ""  # no head has this name
METHODS = ("auto", "isolated", "lstsq", "average")


def start() -> Group:
    """Log to the terminal; the processes that measure the data together."""
    start_log()
    group = joining.group_of()
    group.connect(torch.device("cpu"))
    return group


def network_fields(options: MetadataInitOptions) -> dict[str, Any]:
    """Fields of model.json that say how the network looks: defaults, then preset, then the
    mace YAML, then flags.
    """
    fields: dict[str, Any] = {"model_class": "ScaleShiftMACE", "r_max": R_MAX}
    fields |= PRESETS[options.preset] if options.preset else {}
    if options.mace_config is not None:
        fields |= mace_yaml.network_fields(options.mace_config)
        numbers = mace_yaml.stated(options.mace_config).atomic_numbers
        fields |= {} if numbers is None else {"atomic_numbers": list(numbers)}
    for name in ("r_max", "hidden_irreps", "max_ell", "correlation", "num_interactions"):
        if getattr(options, name) is not None:
            fields[name] = getattr(options, name)
    return fields


def stated(options: MetadataInitOptions) -> Stated:
    """What the mace YAML says of the data where no flag does."""
    found = Stated() if options.mace_config is None else mace_yaml.stated(options.mace_config)
    scaling_is_given = options.scaling is not None
    energies_are_given = options.E0s is not None or options.linear_references is not None
    return replace(
        found,
        E0s=None if energies_are_given else found.E0s,
        scaling=options.scaling if scaling_is_given else found.scaling,
        scale=None if scaling_is_given else found.scale,
        shift=None if scaling_is_given else found.shift,
        zero_shift=options.zero_shift or found.zero_shift,
    )


def existing_fields(options: MetadataFitOptions) -> dict[str, Any]:
    """The fields of a model.json that may lack what is measured, with the usual
    head where it names none.

    Raises:
        InputError: it cannot be read, or lacks the cutoff.
    """
    fields = model_json.load_fields(options.input_json)
    if not isinstance(fields.get("r_max"), int | float):
        raise InputError(
            f"{options.input_json}: r_max is missing, without which neighbours cannot be counted"
        )
    return {"heads": [DEFAULT_HEAD], **fields}


def measure(options: MetadataOptions, network: Mapping[str, Any], group: Group) -> DataSums | None:
    """Read the data once, and sum up what the fields of a model.json need.

    Args:
        options: which data, and what counts of them.
        network: fields of the model.json, among them the cutoff.
        group: the processes that share the structures.

    Returns:
        The sums, the same for any number of processes; None in all but the
        first, which goes on alone.

    Raises:
        InputError: the output is there, the data cannot be used, or they name a head
            that the network lacks.
    """
    group.once(lambda: _refuse_existing(options))
    heads = network.get("heads")
    _refuse_broken(options, {**network, "heads": heads or [DEFAULT_HEAD]})
    usual = _usual_head(heads or [DEFAULT_HEAD])
    sums = sums_of(options, float(network["r_max"]), usual, group)
    if sums is None:
        return None
    _assign_nameless(sums, heads or [])
    unknown = set(sums.heads) - set(heads or sums.heads)
    if unknown:
        raise InputError(
            f"the data name head(s) {sorted(unknown)} but the model has {heads}; write them into "
            "`heads` of the model.json, or let `metadata.py init` make one"
        )
    return sums


def _usual_head(heads: Sequence[str]) -> str:
    """The head of structures that name none: the only one, or that which ``init`` gives them; of
    several others none is the usual one.
    """
    if DEFAULT_HEAD in heads:
        return DEFAULT_HEAD
    return heads[0] if len(heads) == 1 else NAMELESS


def _assign_nameless(sums: DataSums, heads: Sequence[str]) -> None:
    """What names no head, in data of a network with several: isolated atoms alone.

    Raises:
        InputError: structures name none.
    """
    nameless = sums.heads.pop(NAMELESS, None)
    if nameless is None:
        return
    if nameless.structures:
        raise InputError(
            f"{nameless.structures} structures name no head but the model has {[*heads]}; name it "
            "with --head, or write `head` into the records"
        )
    occurring = [name for name, head in sums.heads.items() if head.structures]
    _give_isolated(sums, occurring, nameless)


def _give_isolated(sums: DataSums, heads: Sequence[str], nameless: HeadSums) -> None:
    """Isolated atoms that name no head to the only head of the structures that has none of its
    own; else they are left aside, which is said.
    """
    if len(heads) == 1 and not sums.heads[heads[0]].isolated:
        sums.heads[heads[0]].isolated.update(nameless.isolated)
        return
    log.warning(
        "warning: IsolatedAtom frames of %s name no head and are left aside; "
        "write `head` into them",
        symbols(list(nameless.isolated)),
    )


def heads_of(sums: DataSums, wanted: Sequence[str] = ()) -> list[str]:
    """The heads of the structures, in their order; isolated atoms that name
    none go to the only one.

    Args:
        sums: of the data.
        wanted: the heads of a mace YAML, whose order counts where there are several.

    Raises:
        InputError: the data have other heads than those.
    """
    heads = [name for name, head in sums.heads.items() if head.structures]
    nameless = sums.heads.get(DEFAULT_HEAD)
    if DEFAULT_HEAD not in heads and nameless is not None:
        _give_isolated(sums, heads, nameless)
    if heads != [DEFAULT_HEAD]:
        log.info(
            "heads: %s",
            ", ".join(f"{name} ({sums.heads[name].structures} structures)" for name in heads),
        )
    if len(heads) > 1 and DEFAULT_HEAD in heads:
        log.warning(
            "warning: %d structures name no head and are of head %s; training needs "
            "--head %s for them",
            sums.heads[DEFAULT_HEAD].structures,
            DEFAULT_HEAD,
            DEFAULT_HEAD,
        )
    if len(wanted) < 2:
        return heads
    if set(wanted) != set(heads):
        raise InputError(
            f"the mace YAML has the heads {', '.join(wanted)}, the data {', '.join(heads)}: give "
            "the data of all heads, whose records name theirs as `head`"
        )
    return list(wanted)


def _refuse_broken(options: MetadataOptions, network: Mapping[str, Any]) -> None:
    """Refuse now, before the data are read, what would be refused at the end.

    What is measured is stood in for by numbers that no check refuses.
    """
    numbers = network.get("atomic_numbers") or [1]
    heads = network["heads"]
    n_elements = len(numbers) if isinstance(numbers, list) else 1
    n_heads = len(heads) if isinstance(heads, list) else 1
    measured: dict[str, Any] = {
        "atomic_numbers": numbers,
        "atomic_energies": [[0.0] * n_elements] * n_heads,
        "avg_num_neighbors": 1.0,
    }
    if model_json.scales_energies(network):
        measured |= {"atomic_inter_scale": [1.0] * n_heads, "atomic_inter_shift": [1.0] * n_heads}
    where = getattr(options, "input_json", None) or getattr(options, "mace_config", None)
    model_json.parse(
        json.dumps({**network, **measured}, default=str),
        str(where or f"the model.json for {options.output_json}"),
    )


def measured_fields(
    sums: DataSums, network: Mapping[str, Any], options: MetadataOptions, stated: Stated
) -> dict[str, Any]:
    """The fields of model.json that the data determine, each said in the log.

    Args:
        sums: of the data.
        network: the other fields, its heads among them.
        options: where E0s come from, and how energies are scaled.
        stated: what is not to be measured, or otherwise.

    Raises:
        InputError: the data hold an element that the network lacks, or E0s cannot be had.
    """
    elements = (
        network.get("atomic_numbers")
        or numbers_of(options.data.filters.elements)
        or sorted(sums.elements)
    )
    unknown = sums.elements - set(elements)
    if unknown:
        raise InputError(
            f"the data hold {symbols(list(unknown))}, which atomic_numbers of the model lack"
        )
    log.info("elements: %s", symbols(elements))
    energies_of = _energies_of_heads(options, elements, network["heads"], stated.E0s)
    rows: list[list[float]] = []  # E0s by head and element
    scales: list[float] = []
    shifts: list[float] = []
    for name in network["heads"]:
        if not model_json.has_energies(network):
            rows.append([0.0] * len(elements))
            continue
        head = sums.heads.get(name, HeadSums())
        energies = energies_of(head, name)
        scaling = _scaling(
            head, energies, stated.scaling or options.scaling or USUAL_SCALING, name, stated
        )
        rows.append([energies[z] for z in elements])
        scales.append(scaling.scale)
        shifts.append(scaling.shift)
    fields: dict[str, Any] = {
        "atomic_numbers": elements,
        "atomic_energies": rows,
        "avg_num_neighbors": _neighbors(sums, network["r_max"], stated),
    }
    if model_json.scales_energies(network):
        fields |= {"atomic_inter_scale": scales, "atomic_inter_shift": shifts}
    return fields


def _neighbors(sums: DataSums, r_max: float, stated: Stated) -> float:
    """The mean number of neighbours, measured or stated, said in the log."""
    if stated.avg_num_neighbors is not None:
        log.info("avg_num_neighbors: %.6g, as the mace YAML states", stated.avg_num_neighbors)
        return stated.avg_num_neighbors
    log.info(
        "avg_num_neighbors: %.6g within %g Å, over %d of %d atoms (those with neighbours)",
        sums.avg_num_neighbors,
        r_max,
        sums.atoms_with_neighbors,
        sums.atoms,
    )
    return sums.avg_num_neighbors


def _scaling(
    head: HeadSums, energies: Mapping[int, float], method: str, name: str, stated: Stated
) -> Scaling:
    """Scale and shift of a head of this name, said in the log together with E0s
    that no atom can have.
    """
    low = impossible(energies)
    if low:
        log.warning("warning: head %s: no atom has so low an E0: %s", name, shown(low))
    if stated.scale is not None and stated.shift is not None:
        scaling = Scaling(scale=stated.scale, shift=stated.shift, origin="stated in the mace YAML")
    else:
        scaling = scale_and_shift(head, energies, method)
    if stated.zero_shift:
        scaling = replace(scaling, shift=0.0)
    if scaling.warning:
        log.warning("warning: head %s: %s", name, scaling.warning)
    log.info(
        "head %s: scale %.6g, shift %.6g eV (%s, %d structures)",
        name,
        scaling.scale,
        scaling.shift,
        scaling.origin,
        head.structures,
    )
    return scaling


def _energies_of_heads(
    options: MetadataOptions,
    elements: Sequence[int],
    heads: Sequence[str],
    of_yaml: str | None = None,
) -> Callable[[HeadSums, str], dict[int, float]]:
    """What gives the E0s of a head: linear references, what the user gives, or the data.

    Args:
        options: what the user gives.
        elements: atomic numbers.
        heads: their names.
        of_yaml: E0s of a mace YAML, which isolated atoms in the data go before.
    """
    if of_yaml is not None:
        usual = _energies_of_heads(replace(options, E0s=of_yaml), elements, heads)

        def of_head_in_mace(head: HeadSums, name: str) -> dict[int, float]:
            if not head.isolated:
                return usual(head, name)
            log.info("IsolatedAtom frames go before the E0s of the YAML, as in mace_run_train")
            return _fitted_energies(head, elements, "isolated", name)

        return of_head_in_mace
    if options.linear_references is not None:
        values = linear_references(options.linear_references, elements)
        log.info("E0s are the linear references of %s", options.linear_references)
        return lambda _head, _name: values
    asked = options.E0s or USUAL_E0S
    if asked in METHODS:
        return lambda head, name: _fitted_energies(head, elements, asked, name)
    flag = "--E0s" if asked.lstrip().startswith("{") else f"--E0s {asked}"
    given = given_energies(asked, ", ".join(METHODS), terms.label_keys(options.data.labels))
    given.refuse_other_heads(heads, flag)
    log.info("E0s are those of %s", flag)

    def of_head(_head: HeadSums, name: str) -> dict[int, float]:
        where = f"{flag}, head {name}," if given.by_head else flag
        return energies_for(elements, given.of(name), where)

    return of_head


def _fitted_energies(
    head: HeadSums, elements: Sequence[int], method: str, name: str
) -> dict[int, float]:
    """E0s of a head by a method of ``METHODS``, eV by atomic number, each said in the log."""
    references = reference_energies(head, elements, method)
    log.info("head %s: E0s %s", name, references.origin)
    for z in elements:
        if z not in references.absent:
            log.info("  %-2s %.6f eV", symbols([z]), references.values[z])
    if references.absent:
        log.warning(
            "warning: head %s: no structure has %s: their E0s are 0 and say nothing; give --E0s as "
            "JSON, or isolated atoms",
            name,
            symbols(references.absent),
        )
    if references.warning:
        log.warning("warning: head %s: %s", name, references.warning)
    return references.values


def write_network(options: MetadataInitOptions, network: Mapping[str, Any]) -> None:
    """Write the network alone, where there are no data, for the elements of --elements or of OC22.

    `metadata.py fit` adds the rest.
    """
    numbers = numbers_of(options.data.filters.elements) or network.get("atomic_numbers")
    if numbers is None:
        numbers = numbers_of(["oc22"])
        log.info("neither data nor --elements name elements: the table is that of OC22")
    assert numbers is not None
    fields = {**network, "atomic_numbers": sorted(numbers)}
    _refuse_broken(options, {"heads": [DEFAULT_HEAD], **fields})
    log.info("elements: %s", symbols(numbers))
    _put(options, json.dumps(fields, indent=2, sort_keys=True) + "\n")
    log.warning(
        "warning: %s lacks what data say (E0s, avg_num_neighbors, scale, shift): `metadata.py fit "
        "--input_json %s` with the data puts it in",
        options.output_json,
        options.output_json,
    )


def write(options: MetadataOptions, fields: Mapping[str, Any]) -> ModelDescription:
    """Check the fields as a whole and write the canonical text.

    Raises:
        InputError: they contradict one another, or the file is there or cannot be written.
    """
    description = model_json.parse(
        json.dumps(dict(fields)), f"the model.json for {options.output_json}"
    )
    _put(options, description.canonical_text())
    log.info("wrote %s, hash %s…", options.output_json, description.hash()[:12])
    return description


def _refuse_existing(options: MetadataOptions) -> None:
    path = options.output_json
    if path.exists() and not options.overwrite:
        raise InputError(f"--output_json {path} is there already; give another name or --overwrite")
    refuse_shared_places({"--output_json": path}, what_is_read(options))


def _put(options: MetadataOptions, text: str) -> None:
    """Write a model.json, and never over one that nobody gave up."""
    _refuse_existing(options)
    path = options.output_json
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.write_text(path, text)
    except OSError as error:
        raise cannot_write(f"--output_json {path}", error) from None
