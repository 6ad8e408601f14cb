"""What all recipes share: data, augmentation, training, evaluation, reports, the command line."""
