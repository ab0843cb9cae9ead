"""One string names a data set; here it becomes labelled images, and those become batches."""
