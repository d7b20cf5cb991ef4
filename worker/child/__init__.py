"""The child's side: confinement, decoding, rendering, encoding. Only this package imports Pillow."""
