"""The server: connections and their limits, the guard, headers, access log, shutdown. Nothing here knows of images."""
