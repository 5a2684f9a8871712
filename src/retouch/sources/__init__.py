"""From a source reference to a decoded image, through the cache."""
