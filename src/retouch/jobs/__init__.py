"""Edits that outlive their connection: records in the store, heartbeats, cancellation.

`records` is what the store holds, `heartbeat` says which processes live, `lookup` reads a job of any
process, `jobs` runs them.
"""
