"""Arrays in, arrays out: the operations that segmentation networks are made of. No parameters."""
