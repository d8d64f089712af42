"""Numbers that several rooms share: the ignored label and the statistics of ImageNet."""

IGNORE_INDEX = 255
"""Label of pixels that are neither background nor any class: left out of losses and scores."""

IMAGENET_MEAN: tuple[float, float, float] = (0.485, 0.456, 0.406)
"""Mean of the ImageNet training photographs, RGB in [0, 1]."""

IMAGENET_STD: tuple[float, float, float] = (0.229, 0.224, 0.225)
"""Standard deviation of the ImageNet training photographs, RGB in [0, 1]."""
