"""Average gradients through a parameter store. Usable alone: needs no control plane and no worker."""
