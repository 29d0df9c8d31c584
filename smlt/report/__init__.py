"""What a job did, read back from the log of its events."""
