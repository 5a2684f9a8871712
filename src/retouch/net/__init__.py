"""Download from untrusted hosts: URL rules, address rules, checked connections, bounded responses.

`download_limiter` bounds all downloads together and the connections to each host.
"""
