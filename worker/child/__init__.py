"""The process that decodes, and the only place where Pillow is imported."""
