"""The child's side: confinement, decoding, rendering, encoding. The only place where Pillow is imported."""
