"""Download from untrusted hosts: URL rules, address rules, checked connections, bounded responses."""
