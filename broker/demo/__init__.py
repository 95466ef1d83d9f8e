"""The embedded example: a capture of our own making, a configuration for it, and a receiver. What `tapmesh run --demo` runs."""
