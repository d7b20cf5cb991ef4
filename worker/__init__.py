"""The worker process: claims images, lets a child render them, stores the renditions and publishes them."""
