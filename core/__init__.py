"""Pyramid style transfer: the shared core under the command line, the lab and the bot."""

__version__ = "0.1.0"
