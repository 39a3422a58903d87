"""Clips whose classes only motion tells apart, and the model that learns them."""
