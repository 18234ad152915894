"""Data sets as tensorflow-datasets builders; loaded when they are asked for."""
