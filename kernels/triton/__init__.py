"""What the Triton code generators share: GPUs as data, device code, tiles, the kernel contract.

``device/`` holds the Triton functions themselves; each operator family's ``triton.py`` describes
how a call launches them. One source serves NVIDIA, AMD and Triton's interpreter.
"""
