"""Image classification, one file a family of networks."""
