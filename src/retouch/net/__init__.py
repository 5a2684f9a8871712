"""Reach a stranger's host safely: URL rules, address rules, guarded connections, bounded downloads."""
