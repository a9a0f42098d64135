"""Vector indexes over the rows of one segment: exact scan, IVF-PQ, calibration to a recall."""
