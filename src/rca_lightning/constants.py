"""Numbers that several rooms share: the ignored label, the unknown tag and the statistics of ImageNet."""

IGNORE_INDEX = 255
"""Label of pixels that are neither background nor any class: left out of losses and scores."""

UNKNOWN_TAG = -1.0
"""Value of every tag of an image whose tags are not known; 1 is present and 0 absent."""

IMAGENET_MEAN: tuple[float, float, float] = (0.485, 0.456, 0.406)
"""Mean of the ImageNet training photographs, RGB in [0, 1]."""

IMAGENET_STD: tuple[float, float, float] = (0.229, 0.224, 0.225)
"""Standard deviation of the ImageNet training photographs, RGB in [0, 1]."""
