"""The connection: limits, request heads, slow readers, guard, headers, access log. It knows nothing of images."""
