"""The tile planner: what moves between a far and a near memory, and how to move the least."""

from .bounds import compulsory, lower_bound
from .fuse import Group, NetworkPlan, Step, plan_network
from .layer import Attention, Axis, Conv, Layer, conv, matmul
from .memory import KIB, W4A8, W8A8, Costs, Memory, Words
from .plan import Plan
from .schedule import SCHEDULES, Counts, Schedule, Tiles, measure
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
