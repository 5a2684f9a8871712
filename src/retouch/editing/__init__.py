"""The use case: one edit from request to stored result, and the ports it needs."""
