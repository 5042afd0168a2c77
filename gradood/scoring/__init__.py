"""Streams of inputs on one machine or several: models and files in, scores out."""
