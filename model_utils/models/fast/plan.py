"""The layers of a network as constants, read once from mace's module: shapes,
normalisations, couplings, names.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from model_utils.models.fast.contraction import Contraction
from model_utils.models.fast.convolution import Convolution
from model_utils.models.fast.coverage import NONLINEAR, RESIDUAL
from model_utils.models.fast.first_layer import FirstLayer
from model_utils.models.fast.linear import Blocks, Part
from model_utils.models.fast.radial import Radial


@dataclass(frozen=True, kw_only=True)
class Dense:
    """A layer of e3nn's FullyConnectedNet or of mace's RadialMLP."""

    name: str
    scale: float = 1.0  # on the product
    gain: float = 1.0  # of the normalised activation; 1 in the last layer, which has none
    bias: str | None = None  # RadialMLP has one, and its weight is (n_out, n_in)
    norm: tuple[str, str] | None = None  # weight and bias of the LayerNorm before the activation


@dataclass(frozen=True, kw_only=True)
class Gated:
    """What the non-linear interaction has besides: elements as inputs of its
    radial network, and a gate.
    """

    source: Blocks  # from elements to the inputs of senders
    target: Blocks  # to those of receivers
    own: Blocks  # from what an atom sends to what is added to its messages
    alpha: str  # messages are divided by α + β · density
    beta: str
    n_channels: int
    scalar_gain: float
    gate_gain: float
    mix: Blocks  # behind the gate


@dataclass(frozen=True, kw_only=True)
class Interaction:
    """One layer: messages, their skip connection, products and what follows them."""

    residual: bool
    density: tuple[Dense, ...]  # layers of its network; none where messages are divided by ``norm``
    norm: float
    hidden: tuple[Dense, ...]  # layers of the radial network
    last: Dense
    up: Blocks
    couplings: Convolution
    first: FirstLayer | None  # of a layer whose senders differ by their element only
    down: Blocks
    gated: Gated | None
    skip: Blocks
    product: Contraction
    agnostic: bool  # the product's weights are the same for all elements
    update: Blocks

    @property
    def factor(self) -> float:
        """By which messages are multiplied where no density divides them."""
        return 1.0 if self.density else 1.0 / self.norm

    def keep_on(self, like: Tensor, *, products: bool) -> None:
        """Make tables for tensors of a device and precision, before a step needs them.

        Args:
            like: such a tensor.
            products: also those of the contraction, which are large and read by plain torch alone.
        """
        self.couplings.keep_on(like)
        if self.first is not None:
            self.first.keep_on(like, self.down, self.factor)
        if products:
            self.product.keep_on(like)


@dataclass(frozen=True, kw_only=True)
class Readout:
    """From features of a layer to energies per head."""

    layer: int
    maps: tuple[Blocks, ...]
    biases: tuple[str | None, ...]
    activation: nn.Module | None
    silu_gain: float | None  # where the activation is this times silu


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The constants of a network: everything but weights."""

    max_ell: int
    n_heads: int
    embedding: Blocks
    joint: bool  # atoms of one element differ by further inputs: charge, spin …
    # from the first features to energies that are neither scaled nor shifted
    joint_readout: Blocks | None
    radial: Radial
    interactions: tuple[Interaction, ...]
    readouts: tuple[Readout, ...]


def plan_of(module: Any) -> Plan:
    """The plan of mace's module; the network must be covered (see ``coverage``)."""
    max_ell = int(module.spherical_harmonics._lmax)
    joint = hasattr(module, "joint_embedding")
    joint_readout = getattr(module, "embedding_readout", None)
    interactions = []
    for index, (block, product) in enumerate(
        zip(module.interactions, module.products, strict=True)
    ):
        first = FirstLayer.of(block.conv_tp) if index == 0 and not joint else None
        interactions.append(_interaction(index, block, product, first, max_ell))
    readouts = []
    layers = len(interactions)
    for index, block in enumerate(module.readouts):
        layer = layers - 1 if len(module.readouts) == 1 else index
        readouts.append(_readout(index, block, layer))
    return Plan(
        max_ell=max_ell,
        n_heads=len(module.heads),
        embedding=_blocks("node_embedding.linear", module.node_embedding.linear),
        joint=joint,
        joint_readout=None
        if joint_readout is None
        else _blocks("embedding_readout.linear", joint_readout.linear),
        radial=Radial.of(module),
        interactions=tuple(interactions),
        readouts=tuple(readouts),
    )


def _interaction(
    index: int, block: Any, product: Any, first: FirstLayer | None, max_ell: int
) -> Interaction:
    """The constants of one of mace's interaction blocks and of the product block behind it."""
    name = f"interactions.{index}"
    layers = _layers(f"{name}.conv_tp_weights", block.conv_tp_weights)
    density = getattr(block, "density_fn", None)
    couplings = Convolution.of(block.conv_tp, max_ell)
    contraction: Any = product.symmetric_contractions
    cls = type(block).__name__
    is_gated = cls == NONLINEAR
    down = "linear_1" if is_gated else "linear"
    skip = _blocks if is_gated else _per_element
    return Interaction(
        residual=cls in RESIDUAL,
        density=() if density is None else _layers(f"{name}.density_fn", density),
        norm=float(block.avg_num_neighbors),
        hidden=layers[:-1],
        last=layers[-1],
        up=_blocks(f"{name}.linear_up", block.linear_up),
        couplings=couplings,
        first=first,
        down=_blocks(f"{name}.{down}", getattr(block, down), couplings.widths),
        gated=_gated(name, block) if is_gated else None,
        skip=skip(f"{name}.skip_tp", block.skip_tp),
        product=Contraction.of(contraction, f"products.{index}.symmetric_contractions"),
        agnostic=bool(product.use_agnostic_product),
        update=_blocks(f"products.{index}.linear", product.linear),
    )


def _gated(name: str, block: Any) -> Gated:
    """The constants that mace's non-linear interaction block has besides."""
    gate: Any = block.equivariant_nonlin
    return Gated(
        source=_blocks(f"{name}.source_embedding", block.source_embedding),
        target=_blocks(f"{name}.target_embedding", block.target_embedding),
        own=_blocks(f"{name}.linear_res", block.linear_res),
        alpha=f"{name}.alpha",
        beta=f"{name}.beta",
        n_channels=block.irreps_out[0].mul,
        scalar_gain=float(gate._scalar_cst),
        gate_gain=float(gate._gate_cst),
        mix=_blocks(f"{name}.linear_2", block.linear_2),
    )


def _layers(name: str, net: Any) -> tuple[Dense, ...]:
    """The layers of a network of pairs, of either kind."""
    return (
        _normalised_layers(f"{name}.net", net.net)
        if hasattr(net, "net")
        else _dense_layers(name, net)
    )


def _normalised_layers(name: str, net: Any) -> tuple[Dense, ...]:
    """mace's RadialMLP: x ← silu(LayerNorm(x Wᵀ + b)), at last x Wᵀ + b."""
    layers = []
    for index in range(0, len(net), 3):  # Linear, LayerNorm, SiLU, …, Linear
        norm = f"{name}.{index + 1}"
        layers.append(
            Dense(
                name=f"{name}.{index}.weight",
                bias=f"{name}.{index}.bias",
                norm=(f"{norm}.weight", f"{norm}.bias") if index + 1 < len(net) else None,
            )
        )
    return tuple(layers)


def _dense_layers(name: str, net: Any) -> tuple[Dense, ...]:
    """e3nn: x ← √var_out act(x W/√(h_in var_in)), without activation x ← x W
    √(var_out/(h_in var_in)).
    """
    layers = []
    for index, layer in enumerate(net):
        scale = (layer.h_in * layer.var_in) ** -0.5
        gain = layer.var_out**0.5
        if layer.act is None:
            scale = scale * gain
            gain = 1.0
        else:
            gain *= layer.act.cst
        layers.append(
            Dense(name=f"{name}.layer{index}.weight", scale=float(scale), gain=float(gain))
        )
    return tuple(layers)


def _blocks(name: str, linear: Any, widths: tuple[int, ...] | None = None) -> Blocks:
    """The matrices of e3nn's Linear; matrices of several inputs of one order lie one below
    the other, as one part.
    """
    instructions = [i for i in linear.instructions if i.i_in >= 0]
    orders_in = [ir.l for _, ir in linear.irreps_in]
    parts: dict[int, Part] = {}
    offset = 0
    for i in instructions:
        order = orders_in[i.i_in]
        n_in, n_out = i.path_shape
        before = parts.get(order)
        assert before is None or (
            before.scale == i.path_weight and before.offset + before.n_in * n_out == offset
        )
        parts[order] = Part(
            order=order,
            offset=offset if before is None else before.offset,
            n_in=n_in + (0 if before is None else before.n_in),
            n_out=n_out,
            scale=i.path_weight,
        )
        offset += n_in * n_out
    if widths is None:
        widths = tuple(mul for mul, _ in linear.irreps_in)
    return Blocks(
        name=f"{name}.weight", widths=widths, parts=tuple(parts[order] for order in sorted(parts))
    )


def _per_element(name: str, product: Any) -> Blocks:
    """The matrices of e3nn's FullyConnectedTensorProduct with one-hot elements: (n_in,
    n_elements, n_out) per order.
    """
    parts = []
    offset = 0
    for i in product.instructions:
        n_in, n_elements, n_out = i.path_shape
        order = product.irreps_in1[i.i_in1].ir.l
        scale = i.path_weight / (2 * order + 1) ** 0.5  # the coupling l ⊗ 0 → l is δ/√(2l + 1)
        parts.append(
            Part(
                order=order,
                offset=offset,
                n_in=n_in,
                n_out=n_out,
                scale=scale,
                n_elements=n_elements,
            )
        )
        offset += n_in * n_elements * n_out
    widths = tuple(mul for mul, _ in product.irreps_in1)
    return Blocks(name=f"{name}.weight", widths=widths, parts=tuple(parts))


def _readout(index: int, block: Any, layer: int) -> Readout:
    """The constants of one of mace's readout blocks, which reads the features of ``layer``."""
    name = f"readouts.{index}"
    if hasattr(block, "linear"):
        return Readout(
            layer=layer,
            maps=(_blocks(f"{name}.linear", block.linear),),
            biases=(None,),
            activation=None,
            silu_gain=None,
        )
    act = block.non_linearity.acts[0]
    is_silu = getattr(act, "f", None) is nn.functional.silu
    names = [n for n in ("linear_1", "linear_mid", "linear_2") if hasattr(block, n)]
    return Readout(
        layer=layer,
        maps=tuple(_blocks(f"{name}.{n}", getattr(block, n)) for n in names),
        biases=tuple(f"{name}.{n}.bias" if getattr(block, n).bias.numel() else None for n in names),
        activation=block.non_linearity,
        silu_gain=float(act.cst) if is_silu else None,
    )
