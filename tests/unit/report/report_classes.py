"""Classes of the generated photographs of the report."""

CLASSES = ["cat", "dog", "<b>cow</b>"]
