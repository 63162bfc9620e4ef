"""The tile planner: what moves between a far and a near memory, and how to move the least."""

from ...kernels.tiling.layer import Attention, Axis, Conv, Layer, conv, matmul
from ...kernels.tiling.memory import KIB, W4A8, W8A8, Costs, Memory, Words
from ...kernels.tiling.schedule import SCHEDULES, Counts, Schedule, Tiles, measure
from .bounds import compulsory, lower_bound
from .fuse import Group, NetworkPlan, Step, plan_network
from .plan import Plan
from .search import plan

__all__ = [
    "KIB",
    "SCHEDULES",
    "W4A8",
    "W8A8",
    "Attention",
    "Axis",
    "Conv",
    "Costs",
    "Counts",
    "Group",
    "Layer",
    "Memory",
    "NetworkPlan",
    "Plan",
    "Schedule",
    "Step",
    "Tiles",
    "Words",
    "compulsory",
    "conv",
    "lower_bound",
    "matmul",
    "measure",
    "plan",
    "plan_network",
]
