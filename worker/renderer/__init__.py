"""The parent's side of rendering: a pool of child processes, what is said to them, and checks of what comes back."""
