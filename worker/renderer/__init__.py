"""The parent's side of rendering: a pool of child processes, their protocol, and the checks of their files."""
