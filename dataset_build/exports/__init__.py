"""A finished build in the formats that other programs read: one module per format. See `dataset_build.export`."""
