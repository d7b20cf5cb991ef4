"""Tests of bench: its arithmetic, not what it measures."""
