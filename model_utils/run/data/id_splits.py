"""--train_ids, --val_ids, --test_ids: training, validation and test data by
lists of identifiers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic

import numpy as np
from numpy.typing import NDArray

from dataloader import id_lists
from dataloader.filters import FLAGS_BY_REASON
from dataloader.id_lists import Hashes, IdList, Looked
from dataloader.selection import Part, Selection
from model_utils.errors import InputError
from model_utils.runtime import log
from model_utils.settings.options import SplitOptions

ROLES = ("train", "val", "test")
SHOWN = 5


@dataclass(frozen=True)
class Pool(Generic[Part]):
    """Opened data from which lists choose."""

    data: Part
    looked: Looked


def divided(pools: Mapping[str, Part | None], options: SplitOptions) -> dict[str, Part | None]:
    """The data of each role that its list names; all of them where there is no list.

    A list of validation or test data whose role has no files of its own speaks of the training
    data, which then are what is left, or what the list of training data names.

    Args:
        pools: opened data by role; None where no files are named.
        options: the lists.

    Returns:
        Data by role; None where there is neither a file nor a list.

    Raises:
        InputError: two lists name one identifier, or one names what is not there.
    """
    lists = {role: id_lists.read(path, f"--{role}_ids") for role, path in options.lists().items()}
    id_key = options.id_key
    if id_key is None:
        return dict(pools)
    id_lists.require_apart(list(lists.values()))
    for listed in lists.values():
        if listed.n_repeated:
            log.info(
                "%s %s: %d identifiers stand there more than once",
                listed.flag,
                listed.path,
                listed.n_repeated,
            )
    looked = {
        role: Pool(data, id_lists.look(data, id_key, options.group_key))
        for role, data in pools.items()
        if data is not None
    }
    rows = _rows(lists, looked, id_key)
    parts: dict[str, Part | None] = dict.fromkeys(ROLES)
    seen: dict[str, tuple[Selection, Looked]] = {}
    for role, (source, mask) in rows.items():
        chosen = np.nonzero(mask)[0]
        part = looked[source].data.subset(chosen)
        parts[role] = part
        seen[role] = (part, Looked(*(column[chosen] for column in looked[source].looked)))
        if role in lists:
            log.info("%s: %d structures are named by --%s_ids", role, len(part), role)
    _say_what_is_in_two(seen, options)
    return parts


def _rows(
    lists: Mapping[str, IdList], pools: Mapping[str, Pool[Part]], id_key: str
) -> dict[str, tuple[str, NDArray[np.bool_]]]:
    """For each role that has structures: the role whose files hold them, and
    which of those they are.
    """
    rows: dict[str, tuple[str, NDArray[np.bool_]]] = {}
    for role in ROLES:
        source = role if role in pools else "train"
        if role in lists:
            pool = pools[source]
            mask = id_lists.rows_named(lists[role], pool.looked, id_key, _left_out(pool.data))
            rows[role] = (source, mask)
        elif role in pools:
            rows[role] = (source, np.ones(len(pools[source].data), dtype=bool))
    if "train" not in lists:
        taken = [
            mask for role, (source, mask) in rows.items() if role != "train" and source == "train"
        ]
        rows["train"] = ("train", ~np.any(taken, axis=0) if taken else rows["train"][1])
    return rows


def _left_out(data: Selection) -> int:
    """Records of the data's files that are not used, whatever the reason."""
    of_files = sum(
        s.census.dropped.total() + s.census.left_out.total() + len(s.isolated_atoms)
        for s in data.sources
    )
    return of_files + data.left_out.total()


def _say_what_is_in_two(
    parts: Mapping[str, tuple[Selection, Looked]], options: SplitOptions
) -> None:
    """Warn of identifiers, geometries and groups that two parts share: errors on them are
    of what was trained on.
    """
    columns = {
        f"the same {options.id_key}": {
            role: looked.identifier for role, (_, looked) in parts.items()
        },
        "the same structure": {role: looked.geometry for role, (_, looked) in parts.items()},
        f"the same {options.group_key}": {
            role: looked.group for role, (_, looked) in parts.items()
        },
    }
    for what, hashes in columns.items():
        _say_shared(what, hashes, parts)


def _say_shared(
    what: str, hashes: Mapping[str, Hashes], parts: Mapping[str, tuple[Selection, Looked]]
) -> None:
    for (first, second), (rows, others) in id_lists.across(hashes).items():
        names = ", ".join(parts[second][0].name(int(row)) for row in others[:SHOWN])
        more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        log.warning(
            "warning: %d structures of %s have %s as %d of %s: %s%s",
            *(len(others), second, what, len(rows), first, names, more),
        )


def require_some(data: Selection, role: str) -> None:
    """Refuse a role for which nothing is left.

    Raises:
        InputError: naming the role, and why structures were left out.
    """
    if len(data) > 0:
        return
    reasons = sum((source.census.left_out for source in data.sources), data.left_out.copy())
    if not reasons:
        raise InputError(
            f"no structure is left to {role} on; look at the files, at --elements "
            "and at lists of IDs"
        )
    left_out = ", ".join(f"{count} × {reason}" for reason, count in reasons.most_common())
    flags = dict.fromkeys(
        flag for reason in reasons for part, flag in FLAGS_BY_REASON.items() if part in reason
    )
    raise InputError(
        f"no structure is left to {role} on: left out are {left_out}; look at "
        f"{', '.join([*flags, 'the files'])} and at lists of IDs"
    )
