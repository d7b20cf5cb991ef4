"""The parent's side of rendering: a pool of child processes, their protocol, and checks of what comes back."""
