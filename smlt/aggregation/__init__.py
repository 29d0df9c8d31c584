"""Average gradients through a parameter store; usable alone, without control plane or worker."""
