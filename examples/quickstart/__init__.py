"""What `make demo` starts from: an untrained checkpoint and a generated clip."""
