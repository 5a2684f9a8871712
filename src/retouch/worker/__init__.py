"""The Runpod serverless entry point."""
