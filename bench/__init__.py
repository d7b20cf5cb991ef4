"""Measurements, each a script to run by hand."""
