"""What Redis does: wake-ups, notices, copies of responses; and the clients that talk to it."""
