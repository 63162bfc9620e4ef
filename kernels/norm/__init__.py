"""Group norm and layer norm on channels-last tensors."""
