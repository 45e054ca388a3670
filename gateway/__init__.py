"""The entry-scan gateway: a daemon beside each turnstile."""

__version__ = "0.1.0"
