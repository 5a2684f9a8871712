"""Bytes to pixels and back, within limits, in a sandboxed child process."""
