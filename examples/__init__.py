"""Runnable examples, one folder each; none of the library imports them."""
