"""Which networks the fast step covers; all others run the reference step."""

import re

from model_utils.models.mace_description import MaceDescription

# The orders that the kernels' tables and unrolled loops know.
MAX_ELL = 4
MAX_HIDDEN = 3
MAX_CORRELATION = 4

NONLINEAR = "RealAgnosticResidualNonLinearInteractionBlock"
RESIDUAL = (
    "RealAgnosticResidualInteractionBlock",
    "RealAgnosticDensityResidualInteractionBlock",
    NONLINEAR,
)
INTERACTIONS = (*RESIDUAL, "RealAgnosticInteractionBlock", "RealAgnosticDensityInteractionBlock")


def not_covered(description: MaceDescription) -> str | None:
    """Why a network runs the reference step, as a phrase; None where the fast step computes it."""
    d = description
    for cls in (d.interaction_cls_first, d.interaction_cls):
        if cls not in INTERACTIONS:
            return f"{cls} is not among the interactions it knows"
    hidden = _orders(d.hidden_irreps)
    edge = hidden if d.edge_irreps is None else _orders(d.edge_irreps)
    reasons = [
        (
            hidden is None,
            f"hidden_irreps {d.hidden_irreps} are not 0e, 1o, 2e, 3o with one number of channels",
        ),
        (
            hidden is not None and max(hidden) > MAX_HIDDEN,
            f"hidden_irreps {d.hidden_irreps} go beyond l = {MAX_HIDDEN}",
        ),
        (d.max_ell > MAX_ELL, f"max_ell {d.max_ell} is beyond {MAX_ELL}"),
        (
            max(d.correlation) > MAX_CORRELATION,
            f"correlation {max(d.correlation)} is beyond {MAX_CORRELATION}",
        ),
        (d.radial_type == "chebyshev", "the chebyshev basis has no gradient in torch"),
        (d.distance_transform == "Soft", "the Soft transform of distances is not written for it"),
        (
            edge is None or len(edge) > len(hidden or edge),
            (
                f"edge_irreps {d.edge_irreps} are not orders of hidden_irreps with one "
                "number of channels"
            ),
        ),
        (d.use_so3, "use_so3 couples what parity forbids"),
        (d.use_reduced_cg, "use_reduced_cg was not compared with mace-torch"),
    ]
    return next((reason for applies, reason in reasons if applies), None)


def _orders(irreps: str) -> list[int] | None:
    """The l of ``Cx0e+Cx1o+Cx2e…``; None for any other irreps."""
    orders = []
    channels = set()
    for order, term in enumerate(irreps.split("+")):
        match = re.fullmatch(r"(\d+)x(\d+)([eo])", term)
        if match is None or int(match[2]) != order or match[3] != "eo"[order % 2]:
            return None
        channels.add(match[1])
        if len(channels) > 1:
            return None
        orders.append(order)
    return orders
