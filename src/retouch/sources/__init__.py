"""Source images: from a URL or data: URL to a decoded picture, through the cache."""
