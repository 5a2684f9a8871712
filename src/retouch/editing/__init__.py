"""The use case: one edit from request to stored result, its events in the log, and the ports it needs."""
