"""Where cached sources and results live, S3-compatible storage or a local directory; `keys` has their names."""
