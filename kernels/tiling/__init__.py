"""What a tiling moves between two memories: the counts that planner and generators share."""
