"""The page `report.html`: a gallery of photographs, maps and masks, with scores, curves and prototypes."""
