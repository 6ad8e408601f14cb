"""Recipes that make pictures of their own."""
