"""Label images in the formats of annotation tools and of other training code."""
