"""Measurements, each a script to run by hand: how fast is it here?"""
