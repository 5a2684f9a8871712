"""The Runpod serverless entry point: `handler` turns jobs into edits, and errors into Runpod's form."""
