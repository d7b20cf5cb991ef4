"""Serving renditions: copies in memory, joined reads, the resources, offload to a proxy."""
