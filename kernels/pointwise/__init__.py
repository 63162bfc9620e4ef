"""Everything between the anchors: pointwise chains, reductions and data movement."""
