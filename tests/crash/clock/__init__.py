"""On the PYTHONPATH of one process, a clock that is wrong."""
