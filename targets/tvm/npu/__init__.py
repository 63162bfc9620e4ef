"""An NPU where every byte is counted: machine, instructions, simulator, host program."""
