"""Recipes: networks from pictures to boxes."""
