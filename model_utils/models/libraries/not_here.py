"""Networks that people ask for and that cannot be had here, each with its reason."""

from dataloader.letters import letters_of

E3NN = "mace-torch 0.3.16 needs e3nn 0.4.4, and {} a later one; they cannot be installed together"

NOT_HERE: dict[str, str] = {  # letters of its name: why
    "equiformerv2": E3NN.format("fairchem-core, whose network EquiformerV2 is, needs"),
    "equiformerv3": E3NN.format("fairchem-core, over which EquiformerV3 is built, needs"),
    "escn": E3NN.format("fairchem-core, whose network eSCN is, needs"),
    "esen": E3NN.format("fairchem-core, whose network eSEN is, needs"),
    "uma": E3NN.format("fairchem-core, whose network UMA is, needs"),
    "mattersim": E3NN.format("MatterSim needs"),
    "liten": "LiTEN comes with dipm, which no registry of packages has",
    "pet": (
        "PET is not invariant under rotation: the energy of a structure depends on how it is turned"
    ),
    "orb": (
        "Orb is not invariant under rotation: energies of molecules changed by 26 meV "
        "as they were turned"
    ),
    "eddp": "EDDP of graph-pes fails on an atom without neighbours",
    "nequip": (
        "graph-pes' NequIP with a fixed table of elements computes in float32 alone; "
        "ZEmbeddingNequIP, with a learned one, is offered"
    ),
}


def why_not_here(name: str) -> str | None:
    """Why a network of this name, in any spelling of cases, spaces and dashes, is not
    offered; None: not known.
    """
    return NOT_HERE.get(letters_of(name))
