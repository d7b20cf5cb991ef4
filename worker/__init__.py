"""The worker process: it claims images, has a child render them, stores and publishes what comes back."""
