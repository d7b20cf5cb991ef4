"""Serving a rendition: finding it, holding it in memory, sending it, or having the proxy send it."""
