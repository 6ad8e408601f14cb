"""Recipes for sequences: recurrent networks over text."""
