"""The HTTP entry point: ASGI parts in front of BentoML's app. None of them knows the model.

`app` has the routes and turns errors into answers, `files` serves the local store and completes its links.
"""
