"""What curvature needs, before it is run."""

import torch

from raygeo.analyses.curvature.settings import CurvatureSettings
from raygeo.footprint.model import DryModel
from raygeo.footprint.need import DIVIDED, Need, Scale, Work, halves
from raygeo.geometry.curvature.spaces import spaces_of_weights
from raygeo.geometry.curvature.span import HELD


def cost(settings: CurvatureSettings, scale: Scale) -> list[Need]:
    """Products of the Hessian at every run, their graph, and the vectors that Lanczos' method keeps.

    Eigenvalues are taken to need all ``max_steps``.
    """
    scale = scale.exactly()
    model, texts = scale.model, scale.curvature
    sizes = {name: value.numel() for name, value in model.model.named_parameters()}
    spaces: dict[str, tuple[int, int]] = {}  # places in a space, and its parameters
    for space in settings.spaces:
        if space == "lora":
            spaces[space] = (1, model.trainable)
        elif space != "span":
            found = spaces_of_weights(space, list(sizes), model.shapes)
            spaces[space] = (len(found), max(sum(sizes[name] for name in members) for members in found.values()))
    operators = 1 + settings.ggn
    rows = min(settings.batch_size, texts.count)
    mean = max(2, round(texts.mean))
    product = settings.product
    if product == "gradient_difference":
        checked = scale.student(torch.float32, checkpointing=True)
        held, made = 0, checked.gradient(rows, texts.longest).peak
        flops = 2 * checked.gradient(1, mean).flops
    elif product == "by_layer":
        held, made = 0, model.product(rows, texts.longest, keep_graphs=False, by_layer=True).peak
        flops = model.product(1, mean, keep_graphs=False, by_layer=True).flops
    else:
        graph = model.product(rows, texts.longest)
        held = graph.kept * (-(-texts.count // rows) if settings.keep_graphs else 1)
        made = graph.peak - graph.kept
        flops = model.product(1, mean).flops
    once = Work(float(flops) * texts.count, scale.dtype)
    extremes = settings.max_steps * settings.block_size + settings.trace_probes
    density = settings.slq_probes * settings.slq_steps
    entries = max((size for _, size in spaces.values()), default=0)
    places = scale.runs * operators * sum(count for count, _ in spaces.values())
    needs = []
    common = scale.resident() | {"graph": held, "a product": made}
    remedies = (
        *(("geometry.curvature.keep_graphs=false",) if settings.keep_graphs else ()),
        *(f"geometry.curvature.batch_size={less}" for less in halves(rows)),
        "geometry.curvature.product=by_layer",
        "geometry.curvature.product=gradient_difference",
        f"geometry.curvature.max_basis={2 * (settings.top_k + settings.bottom_k) + 4 * settings.block_size}",
        "geometry.curvature.trace_probes=2",
        "geometry.curvature.vectors_on=cpu",
        *DIVIDED,
        "geometry.curvature.spaces=['span']",
    )
    if places:
        vectors = vectors_held(settings)
        held_vectors = {"Lanczos basis and vectors": vectors * entries * model.dtype.itemsize}
        elsewhere = settings.vectors_on == "cpu"
        searching = held + made + (0 if elsewhere else sum(held_vectors.values()))
        beyond = max(0, _checking(settings, model, entries, held + made) - searching)
        device = common | {"check in fp64, beyond that": beyond}
        needs.append(
            Need(
                "geometry.curvature, eigenvalues",
                places,
                once * (places * extremes),
                device if elsewhere else device | held_vectors,
                held_vectors if elsewhere else {},
                rate="curvature.extremes",
                remedies=remedies,
            )
        )
    if places and settings.slq_probes:
        slices = -(-settings.slq_probes // settings.block_size)
        vectors = 4 * settings.block_size
        needs.append(
            Need(
                "geometry.curvature, density",
                places * slices,
                once * (places * density),
                common | {"Lanczos vectors": vectors * entries * model.dtype.itemsize},
                rate="curvature.density",
                remedies=remedies,
            )
        )
    if "span" in settings.spaces:
        entries = max(1, model.touched)
        together = max(1, HELD // (entries * settings.block_size)) * settings.block_size
        vectors = 2 * (scale.trained if scale.trained * entries <= HELD else together) + 1
        needs.append(
            Need(
                "geometry.curvature, span",
                scale.runs * operators,
                once * (scale.runs * operators * scale.trained),
                common | {"directions and products": vectors * model.touched * model.dtype.itemsize},
                rate="curvature.span",
                remedies=remedies,
            )
        )
        points, pairs = settings.path_points, scale.chosen_pairs(settings.pairs)
        needs.append(
            Need(
                "geometry.curvature, paths",
                pairs,
                scale.scoring(texts, pairs * points),
                scale.resident() | {"a batch": model.scoring(rows, texts.longest).peak},
                rate="curvature.paths",
                remedies=remedies,
            )
        )
    return needs


def _checking(settings: CurvatureSettings, model: DryModel, entries: int, product: int) -> int:
    """Bytes of the check of eigenvectors in fp64: the weights once more, products of half a batch, and the vectors."""
    if not settings.fp64_check:
        return 0
    found = settings.top_k + settings.bottom_k
    return 2 * model.weights + product + found * entries * (4 + 8 + 8)


def vectors_held(settings: CurvatureSettings) -> int:
    """Vectors as long as the space that eigenvalues and trace hold at once, besides those of a product with one."""
    basis = settings.max_basis or (settings.max_steps + 1) * settings.block_size
    found = settings.top_k + settings.bottom_k
    return basis + max(3 * (settings.block_size - 1), found + 4 * len(settings.probe_blocks[0]))
