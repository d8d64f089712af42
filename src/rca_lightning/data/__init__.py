"""Images with tags: VOC 2012, COCO, a folder of one's own, and generated shapes, all as one kind of sample."""
