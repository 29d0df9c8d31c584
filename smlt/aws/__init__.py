"""What AWS needs beyond the Lambda API: a package for its machines, and resources in an account."""
