"""Two-dimensional convolution on channels-last maps, with its neighbours absorbed."""
