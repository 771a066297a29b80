"""ITEMS: item sets, their file formats, media, prompt templates, and the built-in digits set."""
