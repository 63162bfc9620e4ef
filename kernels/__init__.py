"""The operators, the ground floor: one folder per operator family.

A family holds ``op.py`` — schema, shapes, cost and the reference in plain torch that *is* the
operator's meaning — and one file per code generator: ``tir.py`` for TVM, ``triton.py`` for GPUs.
Nothing here imports passes, targets or the front door.
"""
