"""Operations of segmentation networks: arrays in, arrays out, no parameters."""
