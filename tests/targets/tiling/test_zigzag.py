"""An independent model counts the same words: ZigZag, given the planner's tiles and loop order.

Layers without padding or groups, whose tiles divide them: ZigZag knows neither clipped padding nor
uneven last tiles. Needs ``pip install zigzag-dse six``.
"""

from __future__ import annotations

import itertools

import pytest
from zoomc.kernels.tiling.schedule import IGNORES, OPERANDS, covered, trips_of
from zoomc.targets.errors import CapacityError
from zoomc.targets.tiling import KIB, SCHEDULES, Axis, Conv, Memory, Tiles, Words, measure, plan

pytest.importorskip(
    "zigzag.cost_model.cost_model",
    reason="ZigZag is not installed: pip install zigzag-dse six",
    exc_type=ImportError,
)

from zigzag.cost_model.cost_model import CostModelEvaluation
from zigzag.datatypes import LayerDim, LayerOperand
from zigzag.hardware.architecture.memory_port import DataDirection
from zigzag.mapping.data_movement import DataMoveAttr
from zigzag.mapping.spatial_mapping_internal import SpatialMappingInternal
from zigzag.mapping.temporal_mapping import TemporalMapping, TemporalMappingType
from zigzag.parser.accelerator_factory import AcceleratorFactory
from zigzag.parser.accelerator_validator import AcceleratorValidator
from zigzag.parser.workload_factory import LayerNodeFactory
from zigzag.parser.workload_validator import WorkloadValidator

WORD = 16
WORDS = Words(WORD, WORD, WORD, WORD)
NAMES = {"input": "I", "weight": "W", "output": "O"}
FAR = 1  # the level above near memory


def level(bits, top):
    """A memory that all three operands share."""
    sides = {"read": ("tl", "th"), "write": ("fh", "fl")}
    allowed = {"tl", "fl"} if top else {"tl", "th", "fh", "fl"}

    def directions(kind):
        names = [(op, d) for op in ("I1", "I2", "O") for d in sides[kind] if d in allowed]
        return [f"{op}, {d}" for op, d in names if op == "O" or d in {"tl", "fh"}]

    ports = [
        {
            "name": f"{kind[0]}_port_1",
            "type": kind,
            "bandwidth_min": WORD,
            "bandwidth_max": WORD,
            "allocation": directions(kind),
        }
        for kind in ("read", "write")
    ]
    costs = {"r_cost": 1.0, "w_cost": 1.0, "area": 0.0, "latency": 1}
    operands = {"operands": ["I1", "I2", "O"], "served_dimensions": ["D1"]}
    return {"size": bits, "ports": ports, **costs, **operands}


@pytest.fixture(scope="module")
def machine():
    """One multiplier, a near and a far memory."""
    array = {"unit_energy": 1.0, "unit_area": 1.0, "dimensions": ["D1"], "sizes": [1]}
    memories = {"near": level(1 << 30, False), "far": level(1 << 40, True)}
    checked = AcceleratorValidator({"name": "m", "memories": memories, "operational_array": array})
    assert checked.validate()
    return AcceleratorFactory(checked.normalized_data).create()


def node_of(layer):
    """The layer in ZigZag's terms."""
    sizes = {
        "B": layer.batch,
        "K": layer.width,
        "C": layer.depth,
        "OY": layer.rows.outputs,
        "OX": layer.columns.outputs,
        "FY": layer.rows.kernel,
        "FX": layer.columns.kernel,
    }
    data = {
        "id": 0,
        "name": "layer",
        "operator_type": "Conv",
        "equation": "O[b][k][oy][ox]+=W[k][c][fy][fx]*I[b][c][iy][ix]",
        "dimension_relations": [
            f"ix={layer.columns.stride}*ox+1*fx",
            f"iy={layer.rows.stride}*oy+1*fy",
        ],
        "loop_dims": list(sizes),
        "loop_sizes": list(sizes.values()),
        "operand_precision": {"I": WORD, "W": WORD, "O": WORD, "O_final": WORD},
        "operand_source": {"I": 0, "W": 0},
    }
    mapping = {
        "name": "default",
        "spatial_mapping": {"D1": ["K, 1"]},
        "memory_operand_links": {"O": "O", "W": "I2", "I": "I1"},
        "spatial_mapping_hint": None,
        "temporal_ordering": None,
    }
    checked = WorkloadValidator([data])
    assert checked.validate()
    return LayerNodeFactory(checked.normalized_data[0], [mapping]).create()


def counted(machine, layer, schedule, tiles):
    """ZigZag's ``(words read, words written)`` of far memory, and words held, per operand."""
    inside = {
        "s": [("OX", tiles.q), ("OY", tiles.p), ("B", tiles.n)],
        "o": [("K", tiles.o)],
        "i": [("C", tiles.i)],
    }
    trips = {
        "s": [
            ("OX", layer.columns.outputs // tiles.q),
            ("OY", layer.rows.outputs // tiles.p),
            ("B", layer.batch // tiles.n),
        ],
        "o": [("K", layer.width // tiles.o)],
        "i": [("C", layer.depth // tiles.i)],
    }
    tile = [("FX", layer.columns.kernel), ("FY", layer.rows.kernel)]
    tile += [loop for dim in reversed(schedule.order) for loop in inside[dim]]
    many = trips_of(layer, tiles)
    levels = {}
    for operand in OPERANDS:
        near, far = list(tile), []
        for dim in reversed(schedule.order):
            stays = dim == IGNORES[operand] or dim in covered(schedule, operand) or many[dim] == 1
            (near if stays and not far else far).extend(trips[dim])
        levels[operand] = [
            [(LayerDim(name), size) for name, size in loops if size > 1] for loops in (near, far)
        ]
    node = node_of(layer)
    loops = {LayerOperand(NAMES[operand]): found for operand, found in levels.items()}
    flat = SpatialMappingInternal({operand: [[], [], []] for operand in loops}, node)
    model = CostModelEvaluation(
        accelerator=machine,
        layer=node,
        spatial_mapping=flat,
        spatial_mapping_int=flat,
        temporal_mapping=TemporalMapping(loops, node, TemporalMappingType.UNEVEN),
    )
    found = {}
    for operand in OPERANDS:
        name = LayerOperand(NAMES[operand])
        moved = model.mapping.unit_mem_data_movement[name][FAR]
        count = moved.get_attribute(DataMoveAttr.DATA_ELEM_MOVE_COUNT)
        found[operand] = (
            count.get(DataDirection.RD_OUT_TO_LOW),
            count.get(DataDirection.WR_IN_BY_LOW),
            model.mapping.data_elem_per_level[name][1],
        )
    return found


def ours(counts):
    return {
        operand: (read // WORD, write // WORD, held // WORD)
        for operand, read, write, held in zip(
            OPERANDS, counts.reads, counts.writes, counts.footprint, strict=True
        )
    }


CONV = Conv("conv", 2, 8, 4, Axis(10, 3), Axis(6, 3))
STRIDED = Conv("strided", 1, 4, 8, Axis(9, 3, 2), Axis(17, 3, 2))
MATMUL = Conv("matmul", 1, 32, 16, Axis(24), Axis(1), kind="matmul")


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize(
    ("layer", "tiles"),
    [
        (CONV, Tiles(1, 4, 2, 1, 2, 4)),
        (CONV, Tiles(2, 8, 1, 1, 4, 2)),
        (STRIDED, Tiles(1, 2, 4, 1, 4, 4)),
        (MATMUL, Tiles(1, 6, 1, 1, 8, 16)),
    ],
    ids=["tiled", "wide", "strided", "matmul"],
)
def test_every_schedule_moves_and_holds_what_zigzag_counts(machine, layer, tiles, schedule):
    expected = counted(machine, layer, schedule, tiles)
    assert ours(measure(layer, Memory(KIB, WORDS), schedule, tiles)) == expected


@pytest.mark.parametrize("layer", [CONV, STRIDED, MATMUL], ids=lambda layer: layer.name)
def test_the_planner_s_own_choices_do(machine, layer):
    checked = 0
    for eighths in itertools.chain(range(1, 16), (32, 64)):
        try:
            found = plan(layer, Memory(eighths * KIB // 8, WORDS))
        except CapacityError:
            continue
        t = found.tiles
        whole = (
            (layer.batch, t.n),
            (layer.rows.outputs, t.p),
            (layer.columns.outputs, t.q),
            (layer.width, t.o),
            (layer.depth, t.i),
        )
        if any(size % tile for size, tile in whole):
            continue
        assert ours(found.counts) == counted(machine, layer, found.schedule, t)
        checked += 1
    assert checked >= 3
