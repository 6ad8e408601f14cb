"""Recipes that embed: margin and metric losses."""
