"""Redis: the queue that wakes workers, notices, copies of responses, and the clients for them."""
