"""What runs at the client: pack, start, follow, restart, end, account."""
