"""Redis: wake-ups for workers, notices, copies of responses, and the clients that send them."""
