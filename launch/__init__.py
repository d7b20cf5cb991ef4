"""The launcher, which `./run` executes."""
