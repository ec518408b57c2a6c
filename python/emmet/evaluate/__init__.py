"""Whether edits hold, generalise and leave other facts alone: metrics of a model on records, with their uncertainty."""
